"""Files, locks, the terminal and the registry of seams: what every package above uses and none of it knows a UNet."""
