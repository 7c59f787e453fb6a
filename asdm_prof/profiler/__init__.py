"""Where one UNet call spends its time, and whether the figures can be trusted."""
