"""Nothing in a unit's place: the feature map goes through unchanged (`remove_unit`).

What it does: the unit becomes an identity. diffusers' blocks call a Transformer unit with `return_dict=False` and take
the first of a tuple, a bare attention (Kandinsky, DeepFloyd IF) for a tensor, and a ResNet unit with the time
embedding, so there is one identity for each. A ResNet that changes the number of channels cannot become one.

When it helps: where a unit does little; all of its time is saved.

The paper removes whole layers (§2.2); BK-SDM and SnapFusion remove units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class TransformerPassThrough(nn.Module):
    """An identity that is called as a Transformer unit."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        if not return_dict:
            return (hidden_states,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=hidden_states)


class ResnetPassThrough(nn.Module):
    """An identity that is called as a ResNet unit; it takes as many channels as it gives."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *args: Any) -> torch.Tensor:
        return input_tensor


class AttentionPassThrough(nn.Module):
    """An identity that is called as a bare attention, which adds its input to its output itself."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The identity that fits the unit's call, or None for a ResNet that changes the channel count."""
    if hasattr(unit, "transformer_blocks"):
        return TransformerPassThrough()
    if hasattr(unit, "to_q"):
        return AttentionPassThrough()
    return ResnetPassThrough() if unit.in_channels == unit.out_channels else None
