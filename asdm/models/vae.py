"""VAEs on the meta device, and those that overflow in fp16 (`force_upcast`): they compute in fp32 wherever they encode
or decode."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from asdm.measure.device import meta_device


def meta_vae(config: Mapping[str, Any]) -> Any:
    """The VAE of a config on the meta device: shapes without memory."""
    from diffusers import AutoencoderKL

    with meta_device():
        return AutoencoderKL.from_config(config).eval()


def needs_fp32(config: Any, dtype: torch.dtype) -> bool:
    """Whether a VAE's config demands fp32 where fp16 is asked for.

    diffusers' default is not a demand: it stands for all VAEs, and those of Stable Diffusion 1 and 2 run in fp16.
    """
    said = bool(config.get("force_upcast")) and "force_upcast" not in config.get("_use_default_values", ())
    return dtype is torch.float16 and said


def honour_force_upcast(vae: Any) -> Any:
    """Move a VAE in fp16 whose config demands it to fp32, which casts what comes in; returns it.

    Pipelines that know `force_upcast` (SDXL's) and those that do not then draw the same.
    """
    if needs_fp32(vae.config, next(vae.parameters()).dtype):
        nn.Module.to(vae, torch.float32)
        for entrance in (vae.encoder, vae.post_quant_conv or vae.decoder):
            entrance.register_forward_pre_hook(_in_fp32, with_kwargs=True)
    return vae


def _in_fp32(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = tuple(arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args)
    return args, {name: arg.float() if isinstance(arg, torch.Tensor) else arg for name, arg in kwargs.items()}
