"""Training data: data sets of captioned pictures, the loader, the encoder to latents, and the cache of latents."""
