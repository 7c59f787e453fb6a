"""Decode picture files to what a VAE takes: upright, RGB, 8 bits, scaled and cut to one of a few shapes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from asdm.data.datasets import BrokenExample
from asdm.data.settings import SMALLEST_SIDE, Selection
from asdm.utils.pictures import in_rgb, known_formats

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
OTHER_SUFFIXES = (".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".ppm", ".tga", ".exr", ".dng")  # not decoded
NOT_DECODED = "a picture of a format that is not decoded"
STEP = 64  # pixels: every Stable Diffusion takes sides that are multiples of it
NARROWEST = 2.0  # longer by shorter side of a bucket


class Decoded(NamedTuple):
    """A picture (3, h, w) in [-1, 1], and its time ids (see `Example`)."""

    image: torch.Tensor
    time_ids: tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """The shapes (height, width) that pictures may get, and the shorter side that they need."""

    shapes: tuple[tuple[int, int], ...]
    min_side: int = SMALLEST_SIDE

    @classmethod
    def of(cls, size: int, selection: Selection) -> Frame:
        return cls(bucket_shapes(size) if selection.buckets else ((size, size),), selection.min_side)

    def shape_for(self, height: int, width: int) -> tuple[int, int]:
        """The shape whose ratio of sides is nearest."""
        wanted = math.log(width / height)
        return min(self.shapes, key=lambda shape: abs(math.log(shape[1] / shape[0]) - wanted))


def bucket_shapes(size: int) -> tuple[tuple[int, int], ...]:
    """Shapes with sides in steps of 64 pixels, of at most size² pixels and a ratio of at most 2: NovelAI's buckets.

    Of several with one ratio, the largest.
    """
    step = STEP if size >= 4 * STEP else max(8, size // 4)
    shapes = set()
    for width in range(step, int(size * math.sqrt(NARROWEST)) + step, step):
        height = min(size**2 // width // step * step, int(NARROWEST * width) // step * step)
        if height and width <= NARROWEST * height:
            shapes |= {(height, width), (width, height)}
    shapes.add((size, size))
    largest = {width / height: (height, width) for height, width in sorted(shapes)}
    return tuple(sorted(largest.values()))


def decode_picture(data: bytes, frame: Frame, mirrored: bool = False) -> Decoded:
    """A picture scaled until it covers the nearest shape of `frame`, and cut to it in its middle.

    It is turned upright as its EXIF says, and what is transparent becomes white. Raises BrokenExample with the reason.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise BrokenExample("an empty picture file")
    try:
        opened = Image.open(io.BytesIO(data), formats=known_formats())
        if min(opened.size) < frame.min_side:
            raise BrokenExample(f"a side of fewer than {frame.min_side} pixels")
        picture = in_rgb(ImageOps.exif_transpose(opened))
        shape = frame.shape_for(picture.height, picture.width)
        cut = ImageOps.fit(picture, (shape[1], shape[0]), Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        raise BrokenExample("not a picture") from None
    except Image.DecompressionBombError:
        raise BrokenExample("too many pixels") from None
    except BrokenExample:
        raise
    except Exception:  # Pillow raises almost anything for damaged bytes: struct.error, TypeError, RuntimeError, …
        raise BrokenExample("a truncated or damaged picture") from None
    scale = max(shape[0] / picture.height, shape[1] / picture.width)
    top, left = (
        round((side * scale - part) / 2) for side, part in zip((picture.height, picture.width), shape, strict=True)
    )
    pixels = torch.from_numpy(np.array(ImageOps.mirror(cut) if mirrored else cut)).permute(2, 0, 1)
    return Decoded(pixels.float() / 127.5 - 1, (picture.height, picture.width, top, left, *shape))


def shapes_of(files: Sequence[Any], frame: Frame) -> list[tuple[int, int]]:
    """The shape of each picture file, from its header alone; unreadable ones get the first shape."""
    return [_shape_of(file, frame) for file in files]


def _shape_of(file: Any, frame: Frame) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(file, formats=known_formats()) as opened:
            width, height = opened.size
            if opened.getexif().get(0x0112, 1) >= 5:  # turned by a quarter
                width, height = height, width
    except Exception:  # as above; decoding it says what is wrong
        return frame.shapes[0]
    return frame.shape_for(height, width)
