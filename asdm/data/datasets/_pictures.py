"""Decode picture files to what a VAE takes."""

from __future__ import annotations

import io

import torch

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def decode_picture(data: bytes, size: int) -> torch.Tensor:
    """A picture as (3, size, size) in [-1, 1]: the shorter side is scaled to `size`, the longer one cropped.

    Transparent parts become white. Raises ValueError for bytes that are not a complete picture.
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
        raise ValueError(f"not a complete picture ({str(error) or type(error).__name__})") from None
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
