"""One 1×1 convolution in a whole unit's place: what of the unit a linear map of each pixel can say.

What it does: the unit becomes x + W·x + b, or S·x + W·x + b with the shortcut S of a ResNet that changes channels; a
ResNet also keeps a projection of the time embedding. W starts at zero, so it is the identity or the shortcut alone
until least squares on calibration data fits it to what the unit gave.

When it helps: it costs c² multiply-adds a pixel and two or three calls, next to nothing beside the unit, and does less
damage than an identity. Of a ResNet that changes channels, which cannot become an identity, it is the cheapest form.

Not in the paper. Least squares in place of a removed block is what ReplaceMe and others do with language models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.unet.replacements import Refit
from asdm.unet.replacements.pass_through import TransformerPassThrough


class PointwiseTransformer(TransformerPassThrough):
    """A residual 1×1 convolution that is called as a Transformer unit."""

    def __init__(self, unit: Any, like: torch.Tensor) -> None:
        super().__init__()
        self.in_channels = self.out_channels = unit.in_channels
        self.conv = _zero(nn.Conv2d(self.in_channels, self.in_channels, 1, device="meta"), like)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(hidden_states + self.conv(hidden_states), *args, **kwargs)


class PointwiseResnet(nn.Module):
    """A residual 1×1 convolution, with the time embedding, that is called as a ResNet unit."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.in_channels, self.out_channels = unit.in_channels, unit.out_channels
        self.conv_shortcut, self.time = unit.conv_shortcut, None
        self.conv = _zero(nn.Conv2d(self.in_channels, self.out_channels, 1, device="meta"), unit.conv1.weight)
        if unit.time_emb_proj is not None:
            time = nn.Linear(unit.time_emb_proj.in_features, self.out_channels, bias=False, device="meta")
            self.time = _zero(time, unit.conv1.weight)

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *args: Any) -> torch.Tensor:
        out = self.conv(input_tensor)
        if self.time is not None and temb is not None:
            out = out + self.time(F.silu(temb))[:, :, None, None]
        return out + (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))


def _zero(layer: Any, like: torch.Tensor) -> Any:
    for name, parameter in layer.named_parameters():
        setattr(layer, name, nn.Parameter(torch.zeros(parameter.shape, dtype=like.dtype, device=like.device)))
    return layer


def replace(unit: Any, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The 1×1 convolution that fits the unit's call, or None for a unit that scales or resizes its output."""
    if hasattr(unit, "transformer_blocks"):
        return PointwiseTransformer(unit, next(unit.parameters()))
    if not isinstance(getattr(unit, "conv1", None), nn.Conv2d) or unit.up or unit.down or unit.output_scale_factor != 1:
        return None
    return PointwiseResnet(unit)


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The convolution, the time embedding's projection, and the convolution again."""
    both = getattr(unit, "time", None) is not None
    return [Refit("conv", ""), Refit("time", ""), Refit("conv", "")] if both else [Refit("conv", "")]
