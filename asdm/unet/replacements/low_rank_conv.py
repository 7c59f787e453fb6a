"""A ResNet unit whose 3×3 convolutions are each one to fewer channels and a 1×1 convolution from there.

What it does: a kernel, as a matrix from its 9·in inputs to its outputs, is cut to `rank` times its outputs by its
singular values (Zhang et al., "Accelerating Very Deep Convolutional Networks", 2015); inputs count by their mean
square on calibration data, or alike without. Least squares on calibration data then refits the 1×1 convolution.

When it helps: a convolution costs about `rank` of what it did, (9·in + out)·rank·out instead of 9·in·out, in one more
call. At full rank it is the convolution exactly.

Not in the paper; Zhang et al. compress image classifiers so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from asdm.unet.replacements import Power, Refit, Settings, check_share, shared_copy
from asdm.unet.replacements._layers import LowRankConv2d, power_at, rank_of

SETTINGS: Settings = ({}, {"rank": 0.25})
PLACES = ("conv1", "conv2")


def replace(
    unit: Any, siblings: Sequence[nn.Module] = (), rank: float = 0.5, power: Power | None = None
) -> nn.Module | None:
    """The ResNet unit with convolutions of a lower rank, or None for another unit."""
    check_share("rank", rank)
    if not all(isinstance(getattr(unit, place, None), nn.Conv2d) for place in PLACES):
        return None
    unit = shared_copy(unit)
    for place in PLACES:
        conv = getattr(unit, place)
        setattr(unit, place, LowRankConv2d(conv, rank_of(rank, conv.out_channels), power_at(power, place)))
    return unit


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The 1×1 convolutions."""
    return [Refit(f"{place}.1", place) for place in PLACES]
