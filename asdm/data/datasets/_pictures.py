"""Bytes of a picture → what a VAE takes."""

from __future__ import annotations

import io

import torch

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def opened(data: bytes, size: int) -> torch.Tensor:
    """A picture as (3, size, size) in [-1, 1]: the shorter side scaled to `size`, the middle of the longer one kept.

    Transparent parts are white. Raises ValueError for bytes that are no whole picture.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        picture.load()
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"no whole picture ({str(error) or type(error).__name__})") from None
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
