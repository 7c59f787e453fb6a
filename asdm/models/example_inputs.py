"""Example inputs of one UNet call, read off a family's config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from asdm.models.execution import dtype_of
from asdm.models.families import Family
from asdm.unet.inputs import forward_inputs
from asdm.utils import sizes
from asdm.utils.sizes import Size


def latent_sides(family: Family, size: Size | None) -> tuple[int, int]:
    """Latent (height, width) of an image of `size` pixels; raises ValueError where the UNet cannot take it."""
    size = family.size if size is None else size
    width, height = sizes.sides(size)
    step = family.size_step
    if any(side <= 0 or side % step for side in (width, height)):
        nearest: Size = (max(step, step * round(width / step)), max(step, step * round(height / step)))
        fitting = family.size if width == height else nearest
        raise ValueError(
            f"size {sizes.shown(size)} does not fit {family.name}: choose "
            f"{'a multiple' if width == height else 'multiples'} of {step} pixels, such as {sizes.shown(fitting)}."
        )
    return height // family.vae_factor, width // family.vae_factor


def latent_size(family: Family, size: int | None) -> int:
    """Latent pixels per side of a square image, as `latent_sides`."""
    return latent_sides(family, size)[0]


def unet_inputs(
    family: Family,
    batch: int = 1,
    size: Size | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    seed: int = 0,
    more: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Example arguments of one UNet call, with all conditions that its config asks for (`asdm.unet.inputs`).

    The latents have `more` pixels of height and width than `size` gives them.
    """
    (height, width), make = latent_sides(family, size), filler(device, dtype_of(dtype), seed)
    return forward_inputs(family.unet, batch, (height + more[0], width + more[1]), family.tokens, make, device)


def filler(device: str, dtype: torch.dtype, seed: int) -> Callable[..., torch.Tensor]:
    """A function from a shape to normal noise; consecutive calls draw from one generator."""
    if device == "meta":
        return lambda *shape: torch.empty(shape, device="meta", dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)
