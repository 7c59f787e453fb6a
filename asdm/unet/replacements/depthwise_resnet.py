"""A ResNet unit with depthwise separable convolutions (MobileNet's), made to be distilled.

What it does: each 3×3 convolution becomes a 3×3 of every channel by itself and a 1×1 across channels. They start as
the nearest such pair to the teacher's kernel: for each input channel, the best single 3×3 pattern of all its kernels
(singular values), and how much of it every output takes. Least squares on calibration data then refits the 1×1.

When it helps: 9·in + in·out multiply-adds a pixel instead of 9·in·out, about a ninth; depthwise convolutions run far
below a machine's peak, so the time falls by less. One pattern for all outputs is a coarse start: train it.

Not in the paper; MobileDiffusion uses such convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from asdm.unet.replacements import Refit, shared_copy
from asdm.unet.replacements._layers import convolution
from asdm.unet.replacements.low_rank_conv import PLACES


class DepthwiseConv2d(nn.Sequential):
    """A 3×3 convolution of each channel by itself, then a 1×1 across channels."""

    def __init__(self, conv: nn.Conv2d) -> None:
        kernels = conv.weight.detach().float().transpose(0, 1).flatten(2)  # (in, out, 9)
        u, s, v = torch.linalg.svd(kernels, full_matrices=False)
        half = s[:, :1].sqrt()
        patterns = (half * v[:, 0]).view(-1, 1, *conv.kernel_size).to(conv.weight.dtype)
        across = (half * u[..., 0]).T[:, :, None, None].to(conv.weight.dtype)
        plain = {"stride": 1, "padding": 0, "dilation": 1, "padding_mode": "zeros"}
        super().__init__(
            convolution(conv, patterns, None, groups=conv.in_channels), convolution(conv, across, conv.bias, **plain)
        )
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The ResNet unit with depthwise separable convolutions, or None for another unit."""
    if not all(isinstance(getattr(unit, place, None), nn.Conv2d) for place in PLACES):
        return None
    unit = shared_copy(unit)
    for place in PLACES:
        setattr(unit, place, DepthwiseConv2d(getattr(unit, place)))
    return unit


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The 1×1 convolutions."""
    return [Refit(f"{place}.1", place) for place in PLACES]
