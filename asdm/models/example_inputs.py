"""Example inputs of one UNet call, read off a family's config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from asdm.models.execution import dtype_of
from asdm.models.families import Family
from asdm.unet.inputs import forward_inputs


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
    family: Family,
    batch: int = 1,
    size: int | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    seed: int = 0,
    more: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Example arguments of one UNet call, with all conditions that its config asks for (`asdm.unet.inputs`).

    The latents are square, with `more` latent pixels of height and width.
    """
    side, make = latent_size(family, size), filler(device, dtype_of(dtype), seed)
    return forward_inputs(family.unet, batch, (side + more[0], side + more[1]), family.tokens, make, device)


def filler(device: str, dtype: torch.dtype, seed: int) -> Callable[..., torch.Tensor]:
    """A function from a shape to normal noise; consecutive calls draw from one generator."""
    if device == "meta":
        return lambda *shape: torch.empty(shape, device="meta", dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)
