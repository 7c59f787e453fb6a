"""Helpers without knowledge of a UNet: files and records, locks, settings, the terminal, seams and checkpoints."""
