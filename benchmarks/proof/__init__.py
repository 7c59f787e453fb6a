"""A-SDM's students against BK-SDM's at equal latency and equal training."""
