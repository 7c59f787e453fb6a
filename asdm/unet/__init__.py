"""One UNet: its blocks, inputs, hooks, exact costs, and the surgery that a plan asks for."""
