"""A-SDM's profiler: where a Stable Diffusion UNet spends its time, what is redundant, and what to prune."""
