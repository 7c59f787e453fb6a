"""Images from a pipeline, one per caption and seed, and small copies of them for records."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asdm.utils import sizes
from asdm.utils.sizes import Size

THUMBNAIL = 96  # pixels
DRAWN_AT_ONCE = 16  # pictures


@dataclass(frozen=True)
class GeneratedImages:
    """Images (n, 3, h, w) in [-1, 1] with the latents (n, 4, h', w') that they were decoded from."""

    images: torch.Tensor
    latents: torch.Tensor


@torch.inference_mode()
def generate_images(
    pipeline: Any,
    captions: Sequence[str],
    first_seed: int,
    steps: int,
    guidance_scale: float,
    tell: Callable[[int, float | None], None] = lambda *_: None,
    batch: int = DRAWN_AT_ONCE,
    size: Size | None = None,
) -> GeneratedImages:
    """One image per caption; the i-th has seed `first_seed` + i, whatever the model and the batch."""
    images, latents = [], []
    width, height = sizes.sides(size) if size else (None, None)
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    for start in range(0, len(captions), batch):
        prompts = list(captions[start : start + batch])
        generators = [torch.Generator().manual_seed(first_seed + start + i) for i in range(len(prompts))]
        latent = pipeline(prompts, generator=generators, output_type="latent", **options).images
        latents.append(latent.float().cpu())
        images.append(decode_latents(pipeline.vae, latent).cpu())
        tell(start + len(prompts), None)
    return GeneratedImages(torch.cat(images), torch.cat(latents))


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as images in [-1, 1], in the VAE's own precision whatever autocast is on."""
    with torch.autocast(latents.device.type, enabled=False):
        latents = (latents / vae.config.scaling_factor).to(vae.dtype)
        return vae.decode(latents).sample.float().clamp(-1, 1)


def thumbnail(image: torch.Tensor) -> str:
    """An image (3, h, w) in [-1, 1] as a PNG in base64: at most 96 pixels per side and 64 colours, about 2 kB."""
    from PIL import Image

    levels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    picture = Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
