"""Feature distillation: the output of every down and up block against the teacher's (BK-SDM)."""

from __future__ import annotations

import torch
from torch import nn

from asdm.distill.losses import LossInputs, feature_loss
from asdm.unet.blocks import iter_blocks
from asdm.unet.hooks import Places

COMPARES = "feature_maps"
MODES = ("end_to_end",)


def places(student: nn.Module, name_map: dict[str, str]) -> Places:
    """Every block of the student but the middle one."""
    return tuple((name, name_map[name]) for name, _ in iter_blocks(student) if name_map[name] != "mid_block")


def loss(inputs: LossInputs) -> torch.Tensor:
    """Σ over blocks of the squared distance; their mean with `normalise` (b,)."""
    return feature_loss(inputs)
