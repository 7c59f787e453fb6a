"""DeepCache (arXiv 2312.00858): every `interval` steps the whole network, between them a shallow branch of it."""

from __future__ import annotations

from asdm.plan.topology import Topology
from asdm.schedule.presets import FULL, Steps, at_least, every
from asdm.schedule.schedule import Pass


def make(topology: Topology, steps: int, *, interval: int = 3, branch: int = 0) -> Steps:
    """Branch b, as published: the first b + 1 modules of the down path, and as many layers at the end of the up path.

    A down block counts as its layers and its downsampler. As in the published MACs, the deepest of these down layers is
    recomputed although only its skip could be read.
    """
    at_least("deepcache", "interval", interval, 1)
    partial = Pass(inherit=tuple(sorted(inherited(topology, branch))))
    return Steps({"full": FULL, "branch": partial}, every(steps, interval, "branch"))


def inherited(topology: Topology, branch: int, unread: bool = True) -> set[str]:
    """What a pass of a branch inherits; without `unread`, also the down layer whose skip no recomputed layer reads."""
    down = [
        (depth, place, fqns)
        for depth, block in enumerate(topology.down_blocks)
        for place, fqns in enumerate(_modules(topology, block))
    ]
    if not 0 <= branch < len(down):
        raise ValueError(f"branch of deepcache must be between 0 and {len(down) - 1}, got {branch}.")
    deepest, last, _ = down[branch]
    places = {unit.fqn for unit in topology.units if unit.block == "mid_block"}
    for _, _, fqns in down[branch + unread :]:
        places.update(fqns)
    for depth, block in enumerate(reversed(topology.up_blocks)):
        layers = topology.layers(block)
        fresh = len(layers) if depth < deepest else last + 1 if depth == deepest else 0
        for layer in layers[: max(len(layers) - fresh, 0)]:
            places.update(unit.fqn for unit in topology.layer_units(block, layer))
        if depth > deepest and block in topology.samplers:
            places.add(topology.samplers[block])
    return places


def _modules(topology: Topology, block: str) -> list[list[str]]:
    """A down block's layers, and its downsampler."""
    layers = [[unit.fqn for unit in topology.layer_units(block, layer)] for layer in topology.layers(block)]
    return [*layers, *([[topology.samplers[block]]] if block in topology.samplers else [])]
