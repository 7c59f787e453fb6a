"""Model families: one file each, holding the published configs of a Stable Diffusion's components.

A file defines `FAMILY`. Anything else that has a config.json is a family too: a diffusers pipeline folder, or a
folder with one UNet in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asdm import seams
from asdm.files import read_json


@dataclass(frozen=True)
class Family:
    """Configs of one Stable Diffusion; sizes in pixels, prompts in tokens."""

    name: str
    title: str
    size: int
    unet: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...] = ()
    vae: dict[str, Any] | None = None
    tokens: int = 77
    prediction_type: str = "epsilon"
    folder: Path | None = field(default=None)  # where real weights are, for a family that is a folder

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1) if self.vae else 8

    @property
    def size_step(self) -> int:
        """Pixels per pixel of the deepest feature map: sizes are multiples of it, and it is the smallest one."""
        return self.vae_factor * 2 ** (len(self.unet["block_out_channels"]) - 1)

    @property
    def latent(self) -> int:
        return self.size // self.vae_factor


def load_family(name: str) -> Family:
    """A family by name or by folder; raises ValueError that lists the choices."""
    if Path(name).is_dir():
        return _from_folder(Path(name))
    if "/" in name or name.startswith("."):
        raise ValueError(
            f"the folder {name} does not exist; name a diffusers folder, or one of {', '.join(seams.names(__name__))}."
        )
    try:
        return seams.load(__name__, name).FAMILY
    except ValueError:
        raise ValueError(
            f"unknown family {name!r}; choose from {', '.join(seams.names(__name__))}, or name a diffusers folder."
        ) from None


def _from_folder(folder: Path) -> Family:
    unet_file = next((f for f in (folder / "unet" / "config.json", folder / "config.json") if f.exists()), None)
    if unet_file is None:
        raise ValueError(f"{folder} is no diffusers folder: neither unet/config.json nor config.json is in it.")
    unet = read_json(unet_file)
    if not isinstance(unet, dict) or "block_out_channels" not in unet:
        raise ValueError(f"{unet_file} is no config of a diffusers UNet: it has no block_out_channels.")
    texts = [read_json(f) for f in (folder / f"text_encoder{n}" / "config.json" for n in ("", "_2")) if f.exists()]
    vae_file = folder / "vae" / "config.json"
    vae = read_json(vae_file) if vae_file.exists() else None
    factor = 2 ** (len(vae["block_out_channels"]) - 1) if vae else 8
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return Family(
        name=str(folder),
        title=folder.resolve().name,
        size=_square(unet.get("sample_size")) * factor,
        unet=unet,
        text_encoders=tuple(texts),
        vae=vae,
        tokens=texts[0].get("max_position_embeddings", 77) if texts else 77,
        prediction_type=read_json(scheduler).get("prediction_type", "epsilon") if scheduler.exists() else "epsilon",
        folder=folder,
    )


def _square(sample_size: Any) -> int:
    return int(sample_size[0] if isinstance(sample_size, (list, tuple)) else sample_size or 64)
