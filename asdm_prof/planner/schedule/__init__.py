"""Schedules across the sampling steps: their passes, prices and damage, and the exact plan under a budget."""
