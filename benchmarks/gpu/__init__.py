"""Everything that is measured on a GPU, by one command that may be cut off at any moment (docs/guides/gpu.md)."""
