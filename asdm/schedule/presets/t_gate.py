"""T-GATE (arXiv 2404.02747, 2410.05591): no guidance and no cross-attention after a step, sparse self-attention before.

As in the package `tgate`: from `step` on, cross-attention inherits the mean of both halves' values of the step before,
and only the conditional half runs. Before it, self-attention is recomputed every `sp_interval` steps after a warm-up.
"""

from __future__ import annotations

from asdm.plan.topology import Topology
from asdm.schedule.presets import FULL, Steps, at_least
from asdm.schedule.schedule import Pass


def make(
    topology: Topology, steps: int, *, step: int = 10, sp_interval: int = 5, fi_interval: int = 1, warm_up: int = 2
) -> Steps:
    """The planning phase until `step`, then the phase of fidelity."""
    for key, value in (("step", step), ("sp_interval", sp_interval), ("fi_interval", fi_interval)):
        at_least("t_gate", key, value, 1)
    passes = {
        "full": FULL,
        "planning": Pass(inherit=("self_attention",)),
        "gated": Pass(inherit=("cross_attention",), unconditional="drop", mean_of_halves=True),
        "sparse": Pass(inherit=("cross_attention", "self_attention"), unconditional="drop", mean_of_halves=True),
    }
    names = []
    for now in range(steps):
        if now < step:
            fresh = now <= warm_up or now % sp_interval == 0 or now == step - 1
            names.append("full" if fresh else "planning")
        else:
            names.append("gated" if now % fi_interval == 0 else "sparse")
    return Steps({name: one for name, one in passes.items() if name in names}, names)
