"""Profiles of a UNet: latency and MACs of every unit, the roofline, and the checks of the trust box."""
