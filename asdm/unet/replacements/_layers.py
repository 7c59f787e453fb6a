"""Layers that replacements are made of, with weights taken from the teacher's, and how what is kept is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from asdm.unet.replacements import Power


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer with these weights; a bias that is a parameter already is shared."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _with(layer, weight, bias)


def convolution(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None, **geometry: Any) -> nn.Conv2d:
    """A convolution with these weights and the stride, padding and dilation of another, or of `geometry`."""
    own = {name: getattr(like, name) for name in ("stride", "padding", "dilation", "padding_mode")} | geometry
    inside = weight.shape[1] * own.get("groups", 1)
    size: Any = weight.shape[2:]
    layer = nn.Conv2d(inside, weight.shape[0], tuple(size), bias=bias is not None, device="meta", **own)
    return _with(layer, weight, bias)


def _with(layer: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return (
        tensor
        if isinstance(tensor, nn.Parameter)
        else nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))
    )


class Constant(nn.Module):
    """One answer for every token, zero until it is fitted: what is left of a part that was removed."""

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros_like(like, requires_grad=False))

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.bias.expand(x.shape)


# ---------------------------------------------------------------------------------------------- low rank


class LowRankLinear(nn.Sequential):
    """A linear layer as two of a lower rank."""

    def __init__(self, layer: nn.Linear, rank: int, power: torch.Tensor | None = None) -> None:
        out, inside = factors(layer.weight, rank, power)
        super().__init__(linear(inside, None), linear(out, layer.bias))
        self.in_features, self.out_features = layer.in_features, layer.out_features


class LowRankConv2d(nn.Sequential):
    """A convolution as one to fewer channels and a 1×1 convolution from there."""

    def __init__(self, layer: nn.Conv2d, rank: int, power: torch.Tensor | None = None) -> None:
        size = layer.kernel_size[0] * layer.kernel_size[1]
        each = None if power is None else power.repeat_interleave(size)
        out, inside = factors(layer.weight.flatten(1), rank, each)
        inside = inside.view(-1, *layer.weight.shape[1:])
        expand = {"stride": 1, "padding": 0, "dilation": 1, "padding_mode": "zeros"}
        super().__init__(
            convolution(layer, inside, None), convolution(layer, out[:, :, None, None], layer.bias, **expand)
        )
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels


@torch.no_grad()
def factors(weight: torch.Tensor, rank: int, power: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, rank) and (rank, in) whose product is nearest to a matrix: on inputs of this mean square per channel."""
    root = root_of(power, weight[0])
    u, s, v = torch.linalg.svd(weight.detach().float() * root, full_matrices=False)
    half = s[:rank].sqrt()
    return (u[:, :rank] * half).to(weight.dtype), (half[:, None] * v[:rank] / root).to(weight.dtype)


def root_of(power: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Root mean square of input channels, 1 where nothing was measured; channels that are always 0 count a little."""
    if power is None:
        return torch.ones_like(like, dtype=torch.float32)
    root = power.to(like.device, torch.float32).sqrt()
    return root.clamp_min(1e-3 * root.max() + 1e-12)


def rank_of(share: float, full: int) -> int:
    """A share of the full rank as a whole number, at least 1."""
    return max(1, min(full, round(share * full)))


# ---------------------------------------------------------------------------------------------- structured width


def importance(weight: torch.Tensor, power: torch.Tensor | None = None) -> torch.Tensor:
    """What each input channel adds to a layer's output: its mean square times its weights' sum of squares."""
    columns = weight.detach().float().transpose(0, 1).flatten(1).square().sum(1)
    return columns if power is None else columns * power.to(columns)


def best(scores: torch.Tensor, keep: float, groups: int = 1) -> torch.Tensor:
    """Places of the highest scores in ascending order, equally many in each of the equal groups."""
    size = len(scores) // groups
    picks = scores.view(groups, size).topk(rank_of(keep, size), dim=1).indices.sort(dim=1).values
    return (picks + size * torch.arange(groups, device=scores.device)[:, None]).flatten()


def rows(layer: nn.Linear, places: torch.Tensor) -> nn.Linear:
    """A linear layer with some of its outputs."""
    return linear(layer.weight.detach()[places], None if layer.bias is None else layer.bias.detach()[places])


def columns(layer: nn.Linear, places: torch.Tensor) -> nn.Linear:
    """A linear layer with some of its inputs."""
    return linear(layer.weight.detach()[:, places], layer.bias)


def power_at(power: Power | None, path: str) -> torch.Tensor | None:
    """The mean square of each input channel of the layer at `path` in a unit, or None if it was not measured."""
    return None if power is None else power.get(path)


def transformer_blocks(unit: nn.Module) -> Sequence[Any]:
    """The plain blocks of a Transformer unit, whose norms take nothing but their input; empty for other units."""
    candidates = list(getattr(unit, "transformer_blocks", []))
    return candidates if all(getattr(block, "norm_type", None) == "layer_norm" for block in candidates) else []
