"""Random weights for a meta module, in one pass over memory."""

from __future__ import annotations

import torch
from torch import nn

_TILE = 1_000_003  # a prime, so that rows of no weight repeat in step with the tile


def materialise(module: nn.Module, seed: int = 0, device: str = "cpu") -> nn.Module:
    """Give a meta module random weights in one pass over memory.

    Weights are normal with variance 1/fan_in, norms are 1, biases 0: activations keep their scale, so no
    denormals or NaN falsify the times. One random tile is repeated; drawing 860 M numbers would take longer
    than the forward.
    """
    module = module.to_empty(device=device).eval()
    tile = torch.randn(_TILE, generator=torch.Generator().manual_seed(seed)).to(device)
    position = 0
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter.dim() < 2:
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                else:
                    position = _tile(parameter, tile, parameter[0].numel() ** -0.5, position)
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
            else:
                buffer.zero_()
    return module


def _tile(parameter: torch.Tensor, tile: torch.Tensor, scale: float, position: int) -> int:
    flat, written = parameter.view(-1), 0
    while written < flat.numel():
        n = min(tile.numel() - position, flat.numel() - written)
        piece = tile[position : position + n]
        if flat.dtype == tile.dtype:
            torch.mul(piece, scale, out=flat[written : written + n])
        else:
            flat[written : written + n] = piece * scale
        written += n
        position = (position + n) % tile.numel()
    return position
