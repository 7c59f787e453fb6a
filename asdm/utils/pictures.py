"""Picture files as they are opened everywhere: a few formats and sizes, and RGB whatever their mode."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

# What is decoded, whatever a file is called: never EPS, which would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MOST_BYTES = 256 << 20  # of a picture or a caption


def read_picture(path: Path) -> Any:
    """A picture file as a Pillow image in RGB, turned upright as its EXIF says.

    Raises ValueError in one sentence for a file that is missing, too large, damaged or of another format.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.exists() and not path.is_file():  # a pipe or a device, which may never end
        raise ValueError(f"{path} is not an image file.")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"the image {path} has more than {MOST_BYTES >> 20} MiB.")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the image {path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged tags
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=known_formats()) as opened:
                return in_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image file; choose one in {', '.join(known_formats())}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"the image {path} has too many pixels.") from None
    except Exception:  # Pillow raises almost anything for damaged bytes: struct.error, TypeError, RuntimeError, …
        raise ValueError(f"the image {path} is truncated or damaged.") from None


@cache
def known_formats() -> list[str]:
    """Of the formats that are decoded, those that this Pillow knows."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def in_rgb(picture: Any) -> Any:
    """A Pillow image of any mode in RGB: 16 bits are scaled to 8, palettes and CMYK converted, alpha laid on white."""
    import numpy as np
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits of grey, which Pillow's own conversion clips
        values = np.asarray(picture).astype("float64")
        highest = 255 if values.max() <= 255 and picture.mode != "I;16" else 65535
        if picture.mode == "F" and values.max() <= 1:
            highest = 1
        return Image.fromarray((values * (255 / highest)).clip(0, 255).round().astype("uint8")).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
