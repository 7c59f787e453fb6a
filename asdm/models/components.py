"""The models besides the UNet that make an image: text encoders and VAE decoder (Fig. 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asdm.measure.clocks import Clock, timed
from asdm.measure.device import meta_device
from asdm.models.example_inputs import filler, latent_sides
from asdm.models.execution import dtype_of
from asdm.models.families import Family
from asdm.models.loading import materialise
from asdm.models.vae import needs_fp32
from asdm.unet import flops
from asdm.utils import console
from asdm.utils.sizes import Size


@dataclass(frozen=True)
class Component:
    """A model besides the UNet that makes an image; `calls` is how often per image."""

    name: str
    module: nn.Module  # on the meta device
    inputs: Callable[[str, torch.dtype], tuple[tuple[Any, ...], dict[str, Any]]]  # device → args, kwargs
    calls: int
    fp32_in_fp16: bool = False  # a VAE that overflows in fp16


def components_of(family: Family, size: Size | None = None, guided: bool = True) -> list[Component]:
    """Text encoders and VAE decoder of a family, on the meta device (Fig. 1)."""
    components, name = [], ""
    try:
        with meta_device():
            for i, config in enumerate(family.text_encoders):
                name = "text_encoder" + (f"_{i + 1}" if i else "")
                components.append(_text_encoder(config, name, family.tokens, guided))
            name = "VAE"
            if family.vae:
                components.append(_vae_decoder(family, size))
    except Exception as error:  # whatever a foreign constructor makes of a foreign config
        reason = console.first_line(error)
        raise ValueError(f"no {name} can be built of {family.name}'s config: {reason}.") from None
    return components


def _text_encoder(config: dict[str, Any], name: str, tokens: int, guided: bool) -> Component:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    projected = "CLIPTextModelWithProjection" in (config.get("architectures") or [])
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    module = cls(CLIPTextConfig(**{k: v for k, v in config.items() if k != "architectures"})).eval()

    def inputs(device: str, _: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.ones((1, tokens), dtype=torch.long, device=device),), {}

    return Component(name, module, inputs, calls=2 if guided else 1)


def _vae_decoder(family: Family, size: Size | None) -> Component:
    from diffusers import AutoencoderKL

    assert family.vae is not None
    upcast = needs_fp32(family.vae, torch.float16)
    (height, width), channels = latent_sides(family, size), family.vae.get("latent_channels", 4)

    def inputs(device: str, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (filler(device, dtype, seed=0)(1, channels, height, width),), {}

    return Component("vae_decoder", AutoencoderKL.from_config(family.vae).decoder.eval(), inputs, 1, upcast)


def count_call(component: Component) -> flops.Count:
    """MACs and parameters of one call."""
    args, kwargs = component.inputs("meta", torch.float32)
    return flops.count(component.module, args, kwargs)


def time_calls(
    component: Component, device: str, dtype: str, seed: int, clock: Clock, budget_s: float = 30.0
) -> list[float]:
    """Seconds of two to ten calls with random weights."""
    dtype = "fp32" if dtype == "fp16" and component.fp32_in_fp16 else dtype
    module = materialise(copy.deepcopy(component.module).to(dtype_of(dtype)), seed, device)
    args, kwargs = component.inputs(device, dtype_of(dtype))
    times = [timed(lambda: module(*args, **kwargs), clock)]
    while len(times) < 2 or (len(times) < 10 and sum(times) + times[-1] <= budget_s):
        times.append(timed(lambda: module(*args, **kwargs), clock))
    return times[1:] if len(times) > 2 else times  # the first call warms up, where there is time for one
