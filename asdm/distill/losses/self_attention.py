"""The output of every self-attention against the teacher's: the features that matter most, says KOALA."""

from __future__ import annotations

import torch
from torch import nn

from asdm.distill.losses import LossInputs, feature_loss
from asdm.unet.blocks import self_attention_names
from asdm.unet.hooks import Places

COMPARES = "feature_maps"
MODES = ("end_to_end",)


def places(student: nn.Module, name_map: dict[str, str]) -> Places:
    """Every self-attention in a unit that the plan keeps."""
    return tuple(
        (name, name_map[unit] + name[len(unit) :]) for unit, name in self_attention_names(student) if unit in name_map
    )


def loss(inputs: LossInputs) -> torch.Tensor:
    """Σ over self-attentions of the squared distance; their mean with `normalise` (b,)."""
    return feature_loss(inputs)
