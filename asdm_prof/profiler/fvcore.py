"""A second count of a UNet's MACs, by fvcore, on a small image with real tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from asdm.models import example_inputs, loading
from asdm.models.families import Family
from asdm.records.measurement import Macs
from asdm.unet import flops
from asdm_prof.profiler.progress import Status, Watch
from asdm_prof.profiler.settings import ProfileSettings


def count_again(
    family: Family, unet: nn.Module, device: str, settings: ProfileSettings, tell: Watch
) -> tuple[int, Macs, Macs]:
    """(pixels, our count, fvcore's count) of a small image with the real tensors."""
    tell(Status("counting again with fvcore"))
    size = 2 * family.size_step
    inputs = example_inputs.unet_inputs(family, 1, size, device, settings.dtype)
    ours = flops.count(loading.meta_unet(family), (), example_inputs.unet_inputs(family, 1, size, "meta"))
    return size, ours.total, flops.count_by_fvcore(_Positional(unet, inputs), _positional_inputs(inputs))


def _positional_inputs(inputs: dict[str, Any]) -> list[torch.Tensor]:
    return [inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]]


class _Positional(nn.Module):
    """A UNet that takes three tensors and returns one, as a jit trace needs it."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.unet = unet
        self.rest = {k: v for k, v in inputs.items() if k not in ("sample", "timestep", "encoder_hidden_states")}

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, text, **self.rest)[0]
