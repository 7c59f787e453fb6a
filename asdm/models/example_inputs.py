"""Example inputs of one UNet call, read off a family's config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from asdm.models.execution import dtype_of
from asdm.models.families import Family


def latent_size(family: Family, size: int | None) -> int:
    """Latent pixels per side for an image of `size` pixels; raises ValueError where the UNet cannot take it."""
    size = family.size if size is None else size
    step = family.size_step
    if size <= 0 or size % step:
        raise ValueError(
            f"size {size} does not fit {family.name}: choose a multiple of {step} pixels, such as {family.size}."
        )
    return size // family.vae_factor


def unet_inputs(
    family: Family, batch: int = 1, size: int | None = None, device: str = "cpu", dtype: str = "fp32", seed: int = 0
) -> dict[str, Any]:
    """Example arguments of one UNet call: latents (batch, 4, h, w), a timestep, text states (batch, tokens, width)."""
    latent, make = latent_size(family, size), filler(device, dtype_of(dtype), seed)
    config = family.unet
    width = config.get("cross_attention_dim", 1280)
    width = width[0] if isinstance(width, list | tuple) else width
    inputs: dict[str, Any] = {
        "sample": make(batch, config.get("in_channels", 4), latent, latent),
        "timestep": torch.full((batch,), 500, device=device),
        "encoder_hidden_states": make(batch, family.tokens, width),
        "return_dict": False,
    }
    if config.get("addition_embed_type") == "text_time":
        ids = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - ids
        inputs["added_cond_kwargs"] = {"text_embeds": make(batch, pooled), "time_ids": make(batch, 6)}
    return inputs


def filler(device: str, dtype: torch.dtype, seed: int) -> Callable[..., torch.Tensor]:
    """A function from a shape to normal noise; consecutive calls draw from one generator."""
    if device == "meta":
        return lambda *shape: torch.empty(shape, device="meta", dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)
