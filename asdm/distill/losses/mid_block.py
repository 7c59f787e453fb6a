"""Semantic-aware supervision (§2.5): the middle block's output, which helps `down_blocks.0` most."""

from __future__ import annotations

import torch
from torch import nn

from asdm.distill.losses import LossInputs, feature_loss
from asdm.unet.blocks import iter_blocks
from asdm.unet.hooks import Places

COMPARES = "feature_maps"
MODES = ("end_to_end",)


def places(student: nn.Module, name_map: dict[str, str]) -> Places:
    """The middle block, where the student has one."""
    return tuple((name, name_map[name]) for name, _ in iter_blocks(student) if name_map[name] == "mid_block")


def loss(inputs: LossInputs) -> torch.Tensor:
    """Squared distance of the middle block's map (b,)."""
    return feature_loss(inputs)
