"""What every edit does to the output, measured on real weights and data."""
