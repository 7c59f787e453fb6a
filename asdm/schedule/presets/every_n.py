"""The network runs every `n` steps; the others inherit its whole output."""

from __future__ import annotations

from asdm.plan.topology import Topology
from asdm.schedule.presets import FULL, NOTHING, Steps, at_least, every


def make(topology: Topology, steps: int, *, n: int = 2) -> Steps:
    """Full at steps 0, n, 2n, …"""
    at_least("every_n", "n", n, 1)
    return Steps({"full": FULL, "none": NOTHING}, every(steps, n, "none"))
