"""A Transformer unit whose feed-forward keeps a share of its hidden channels.

What it does: hidden channels are ranked by what they add to the output (their mean square on calibration data times
the squared weights that read them; without data, the weights alone), and the `keep` best stay, with their gates. Their
weights are the teacher's; least squares on calibration data then refits the output layer, so that what stays makes up
for what went.

When it helps: the feed-forward is two thirds of a unit's linear multiply-adds, and they fall in proportion to `keep`.

Not in the paper; structured pruning as in OBS-Diff and Torch-Pruning, with the compensation in closed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from asdm.unet.replacements import Power, Refit, Settings, check_share, shared_copy
from asdm.unet.replacements._layers import best, columns, importance, power_at, rows, transformer_blocks

SETTINGS: Settings = ({}, {"keep": 0.75}, {"keep": 0.25})


def replace(
    unit: nn.Module, siblings: Sequence[nn.Module] = (), keep: float = 0.5, power: Power | None = None
) -> nn.Module | None:
    """The Transformer unit with narrower feed-forwards, or None where it has none."""
    check_share("keep", keep)
    if not list(feed_forwards(unit)):
        return None
    unit = shared_copy(unit)
    for path, ff in feed_forwards(unit):
        out = ff.net[2]
        places = best(importance(out.weight, power_at(power, f"{path}.net.2")), keep)
        gated = ff.net[0].proj.out_features == 2 * out.in_features
        ff.net[0].proj = rows(ff.net[0].proj, torch.cat([places, places + out.in_features]) if gated else places)
        ff.net[2] = columns(out, places)
    return unit


def feed_forwards(unit: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, module) of every feed-forward that projects in and out."""
    for i, block in enumerate(transformer_blocks(unit)):
        net: Any = getattr(getattr(block, "ff", None), "net", ())
        if len(net) > 2 and hasattr(net[0], "proj"):
            yield f"transformer_blocks.{i}.ff", block.ff


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The output layers."""
    for path, _ in feed_forwards(unit):
        yield Refit(f"{path}.net.2", f"{path}.net.2")
