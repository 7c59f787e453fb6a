"""Time and memory: clocks, statistics, repeats, the machine, and the runtimes that a UNet can be timed in."""
