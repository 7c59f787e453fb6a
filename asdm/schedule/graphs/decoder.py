"""A VAE's decoder as a graph, from latents to pixels in the runtime of the UNet's passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from asdm.measure.backends import _onnx
from asdm.schedule.graphs.passes import open_runtime


class GraphDecoder(nn.Module):
    """Runs a decoder in fp32 as a graph at one shape of latents (1, c, h, w), and itself at others.

    The graph is in the cache; OpenVINO may compute in `precision` bf16.
    """

    def __init__(self, plain: nn.Module, latents: tuple[int, ...], runtime: str, precision: str) -> None:
        super().__init__()
        self.plain, self.latents = plain, latents
        graph = _onnx.cached(plain, {"sample": torch.zeros(latents)})
        self.call_graph = open_runtime(runtime, graph, precision)

    def forward(self, sample: torch.Tensor, *more: Any) -> torch.Tensor:
        """As a decoder's: latents (n, c, h, w) to pixels (n, 3, 8h, 8w)."""
        if tuple(sample.shape) != self.latents or any(one is not None for one in more):
            return self.plain(sample, *more)
        return torch.from_numpy(self.call_graph({"sample": sample.contiguous().numpy()})[0])


def plain_decoder(vae: Any) -> nn.Module:
    """A VAE's own decoder, whether it runs as a graph or not."""
    return vae.decoder.plain if isinstance(vae.decoder, GraphDecoder) else vae.decoder
