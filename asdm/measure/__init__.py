"""Latency measurement: clocks, repeats, statistics, the machine, and one backend per runtime."""
