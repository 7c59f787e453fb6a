"""Students against their teacher: latency in pairs, and the quality of pictures."""
