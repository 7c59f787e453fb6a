"""Images from a pipeline, one per caption and seed, and small copies of them for records."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from asdm.models import checkpoints
from asdm.utils import sizes
from asdm.utils.io import make_folder, write_whole
from asdm.utils.pictures import read_picture
from asdm.utils.sizes import Size

THUMBNAIL = 96  # pixels
DRAWN_AT_ONCE = 16  # pictures


class Pictures(Protocol):
    """Pictures with the latents that they were decoded from, read some at a time."""

    def __len__(self) -> int: ...

    def images_in(self, rows: range) -> torch.Tensor:
        """(b, 3, h, w) in [-1, 1]."""
        ...

    def latents_in(self, rows: range) -> torch.Tensor | None:
        """(b, 4, h', w'), or None for pictures that were not generated."""
        ...


@dataclass(frozen=True)
class GeneratedImages:
    """Images (n, 3, h, w) in [-1, 1] with the latents (n, 4, h', w') that they were decoded from, in memory."""

    images: torch.Tensor
    latents: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def images_in(self, rows: range) -> torch.Tensor:
        return self.images[rows.start : rows.stop]

    def latents_in(self, rows: range) -> torch.Tensor | None:
        return None if self.latents is None else self.latents[rows.start : rows.stop]


@dataclass(frozen=True)
class StoredImages:
    """PNG files `00000000.png`, … in a folder, and with `with_latents` the latents of every 16 of them in a file.

    `side`: pixels that they are scaled to when they are read, as BK-SDM judges 512×512 at 256×256.
    """

    folder: Path
    count: int
    with_latents: bool = True
    side: int | None = None

    def __len__(self) -> int:
        return self.count

    def images_in(self, rows: range) -> torch.Tensor:
        return torch.stack([self._image(i) for i in rows])

    def latents_in(self, rows: range) -> torch.Tensor | None:
        if not self.with_latents:
            return None
        files = sorted({i // DRAWN_AT_ONCE for i in rows})
        stored = torch.cat([self._latents(self.latents_file(number)) for number in files])
        first = files[0] * DRAWN_AT_ONCE
        return stored[rows.start - first : rows.stop - first]

    @staticmethod
    def _latents(file: Path) -> torch.Tensor:
        tensors = checkpoints.read_tensors(file)
        if "latents" not in tensors:
            raise ValueError(f"{file} holds no latents; delete it, and they are drawn again.")
        return tensors["latents"]

    def picture_file(self, i: int) -> Path:
        return self.folder / f"{i:08d}.png"

    def latents_file(self, number: int) -> Path:
        return self.folder / f"latents-{number:06d}.safetensors"

    def _image(self, i: int) -> torch.Tensor:
        import numpy as np
        from PIL import Image

        picture = read_picture(self.picture_file(i))
        if self.side and self.side != min(picture.size):
            picture = picture.resize((self.side, self.side), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1

    def write(self, first: int, images: torch.Tensor, latents: torch.Tensor | None = None) -> None:
        """Write pictures from number `first` on; their latents last, so that a file of these marks a whole batch."""
        from safetensors.torch import save

        for i, image in enumerate(images, first):
            write_whole(self.picture_file(i), as_png(image), force=True)
        if latents is not None:
            write_whole(self.latents_file(first // DRAWN_AT_ONCE), save({"latents": latents.contiguous()}), force=True)


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
    """One image per caption, in memory; the i-th has seed `first_seed` + i, whatever the model and the batch."""
    images, latents = [], []
    for start in range(0, len(captions), batch):
        prompts = list(captions[start : start + batch])
        image, latent = _draw(pipeline, prompts, first_seed + start, steps, guidance_scale, size)
        images.append(image)
        latents.append(latent)
        tell(start + len(prompts), None)
    return GeneratedImages(torch.cat(images), torch.cat(latents))


@torch.inference_mode()
def store_images(
    pipeline: Any,
    captions: Sequence[str],
    first_seed: int,
    steps: int,
    guidance_scale: float,
    folder: Path,
    tell: Callable[[int, float | None], None] = lambda *_: None,
    size: int | None = None,
    side: int | None = None,
    at_once: int = DRAWN_AT_ONCE,
) -> StoredImages:
    """The same as PNG files in a folder, where those of an earlier call are not drawn again."""
    stored = StoredImages(make_folder(folder), len(captions), side=side)
    began, drawn = time.monotonic(), 0
    for start in range(0, len(captions), DRAWN_AT_ONCE):
        if stored.latents_file(start // DRAWN_AT_ONCE).exists():
            continue
        prompts = list(captions[start : start + DRAWN_AT_ONCE])
        options = (first_seed + start, steps, guidance_scale, lambda *_: None, at_once, size)
        drawn_now = generate_images(pipeline, prompts, *options)
        stored.write(start, drawn_now.images, drawn_now.latents)
        drawn += len(prompts)
        left = (len(captions) - start - len(prompts)) * (time.monotonic() - began) / drawn
        tell(start + len(prompts), left)
    return stored


def _draw(
    pipeline: Any, prompts: list[str], first_seed: int, steps: int, guidance_scale: float, size: Size | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and latents of some prompts, on the host."""
    width, height = sizes.sides(size) if size else (None, None)
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    generators = [torch.Generator().manual_seed(first_seed + i) for i in range(len(prompts))]
    latent = pipeline(prompts, generator=generators, output_type="latent", **options).images
    return decode_latents(pipeline.vae, latent).cpu(), latent.float().cpu()


def as_png(image: torch.Tensor) -> bytes:
    """An image (3, h, w) in [-1, 1] as a PNG file of 8 bits a channel."""
    from PIL import Image

    levels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    stream = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(stream, format="PNG")
    return stream.getvalue()


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
