"""A Transformer unit whose feed-forward layers are each two of a lower rank.

What it does: both layers of the feed-forward are cut to `rank` times the unit's channels by their singular values;
inputs count by their mean square on calibration data, or alike without. Least squares on calibration data then refits
the second of each two.

When it helps: n·14·rank·c² multiply-adds instead of n·12·c² (a gated feed-forward of c channels), in two more calls.
At full rank it is the feed-forward exactly.

Not in the paper; SlimDiff compresses feed-forwards from activations in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from asdm.unet.replacements import Power, Refit, Settings, check_share, shared_copy
from asdm.unet.replacements._layers import LowRankLinear, power_at, rank_of
from asdm.unet.replacements.narrow_feed_forward import feed_forwards

SETTINGS: Settings = ({}, {"rank": 0.25})


def replace(
    unit: nn.Module, siblings: Sequence[nn.Module] = (), rank: float = 0.5, power: Power | None = None
) -> nn.Module | None:
    """The Transformer unit with feed-forwards of a lower rank, or None where it has none."""
    check_share("rank", rank)
    if not list(feed_forwards(unit)):
        return None
    unit = shared_copy(unit)
    for path, ff in feed_forwards(unit):
        full = rank_of(rank, ff.net[0].proj.in_features)
        ff.net[0].proj = LowRankLinear(ff.net[0].proj, full, power_at(power, f"{path}.net.0.proj"))
        ff.net[2] = LowRankLinear(ff.net[2], full, power_at(power, f"{path}.net.2"))
    return unit


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The second of each two layers."""
    for path, _ in feed_forwards(unit):
        yield Refit(f"{path}.net.0.proj.1", f"{path}.net.0.proj")
        yield Refit(f"{path}.net.2.1", f"{path}.net.2")
