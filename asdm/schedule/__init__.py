"""Which network and which parts of it run at which denoising step."""
