"""Schedules across steps beside DeepCache, T-GATE, ToMe and PAB: latency and quality on one pipeline and machine."""
