"""A ResNet unit that keeps a share of its hidden channels.

What it does: the channels between the two convolutions are ranked by what they add to the output (their mean square on
calibration data times the squared weights that read them; without data, the weights alone). Equally many stay in every
group of the second norm, so that groups are neither mixed nor lost; where a group is a single channel, whole groups
go. Their weights are the teacher's; least squares on calibration data then refits the second convolution, so that what
stays makes up for what went, the changed statistics of the norm included.

When it helps: both convolutions fall in proportion to `keep`; the shortcut stays.

Not in the paper; structured pruning as in OBS-Diff and Torch-Pruning, with the compensation in closed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from asdm.unet.replacements import Power, Refit, Settings, check_share, shared_copy
from asdm.unet.replacements._layers import best, convolution, importance, power_at, rows

SETTINGS: Settings = ({}, {"keep": 0.75}, {"keep": 0.25})


def replace(
    unit: Any, siblings: Sequence[nn.Module] = (), keep: float = 0.5, power: Power | None = None
) -> nn.Module | None:
    """The ResNet unit with fewer hidden channels, or None for another unit."""
    check_share("keep", keep)
    if not (isinstance(getattr(unit, "conv2", None), nn.Conv2d) and isinstance(unit.norm2, nn.GroupNorm)):
        return None
    unit = shared_copy(unit)
    hidden, groups = unit.norm2.num_channels, unit.norm2.num_groups
    scores = importance(unit.conv2.weight, power_at(power, "conv2"))
    places = best(scores, keep, groups if groups < hidden else 1)
    kept_groups = groups if groups < hidden else len(places)
    unit.norm2 = _norm(unit.norm2, places, kept_groups)
    unit.conv1 = convolution(unit.conv1, unit.conv1.weight.detach()[places], unit.conv1.bias.detach()[places])
    unit.conv2 = convolution(unit.conv2, unit.conv2.weight.detach()[:, places], unit.conv2.bias)
    if (project := unit.time_emb_proj) is not None:
        both = project.out_features == 2 * hidden  # scale and shift
        unit.time_emb_proj = rows(project, torch.cat([places, places + hidden]) if both else places)
    return unit


def _norm(norm: nn.GroupNorm, places: torch.Tensor, groups: int) -> nn.GroupNorm:
    narrow = nn.GroupNorm(groups, len(places), norm.eps, device="meta")
    narrow.weight = nn.Parameter(norm.weight.detach()[places])
    narrow.bias = nn.Parameter(norm.bias.detach()[places])
    return narrow


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The second convolution."""
    return [Refit("conv2", "conv2")]
