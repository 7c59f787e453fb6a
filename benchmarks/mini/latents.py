"""The UNet's data: latents of every training drawing at both sizes, with the captions, in one file of 24 MB.

The file is all that a machine without the drawings needs, beside the VAE and the CLIP.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save

from asdm.data.datasets import emoji
from asdm.utils.io import write_whole
from asdm.utils.progress import Tell
from benchmarks.mini.parts import SMALL, load_drawings

FILE = "latents.safetensors"
VAE = Path("vae") / "diffusion_pytorch_model.safetensors"
SIDED = ("left", "right", "leftwards", "rightwards", "globe", "clock", "watch", "stopwatch", "musical")  # words


class Latents(NamedTuple):
    """Latents (n, 2, 4, h, w) of n drawings and their mirror images, and what the drawings are called."""

    small: torch.Tensor
    full: torch.Tensor
    captions: tuple[str, ...]


def encode(folder: Path, tell: Tell) -> Latents:
    """Encode the training drawings with the folder's VAE, unless that has been done."""
    path, vae_sha256 = folder / FILE, _vae_sha256(folder)
    if path.exists() and _facts(path)["vae_sha256"] == vae_sha256:
        return load(folder)
    drawings = {name: load_drawings("train", size=size) for name, size in (("small", SMALL), ("full", emoji.SIZE))}
    names, kinds = drawings["full"].names, drawings["full"].subcategories
    mirrored = torch.tensor([may_be_mirrored(name, kind) for name, kind in zip(names, kinds, strict=True)])
    tensors = {name: _encoded(folder, data.images(), mirrored, tell).half() for name, data in drawings.items()}
    facts = {"vae_sha256": vae_sha256, "captions": json.dumps(drawings["full"].captions, allow_nan=False)}
    write_whole(path, save(tensors, facts), force=True)
    return load(folder)


def load(folder: Path) -> Latents:
    """The folder's latents; raises ValueError where there are none, or where they are another VAE's."""
    path = folder / FILE
    if not path.exists():
        raise ValueError(f"{path} does not exist; python -m benchmarks.mini vae clip latents makes it.")
    facts = _facts(path)
    if facts["vae_sha256"] != _vae_sha256(folder):
        raise ValueError(f"{path} was encoded by another VAE; python -m benchmarks.mini latents encodes it again.")
    with safe_open(path, "pt") as file:
        small, full = (file.get_tensor(name).float() for name in ("small", "full"))
    return Latents(small, full, tuple(json.loads(facts["captions"])))


def may_be_mirrored(name: str, kind: str) -> bool:
    """Whether a drawing's mirror image has the same name: a first quarter moon's is a last quarter moon."""
    return kind != "sky & weather" and not set(name.replace("-", " ").split()) & set(SIDED)


@torch.inference_mode()
def _encoded(folder: Path, images: torch.Tensor, mirrored: torch.Tensor, tell: Tell) -> torch.Tensor:
    """Means (n, 2, 4, h, w) of pictures (n, 3, s, s) and their mirror images, where they have one."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    rows = []
    for start in range(0, len(images), 32):
        part, may = images[start : start + 32], mirrored[start : start + 32, None, None, None]
        both = torch.stack([part, torch.where(may, part.flip(-1), part)], dim=1)  # (b, 2, 3, s, s)
        rows.append(vae.encode(both.flatten(0, 1)).latent_dist.mean.unflatten(0, (-1, 2)))
        tell(f"at {images.shape[-1]} pixels", start + len(part), None)
    return torch.cat(rows)


def _vae_sha256(folder: Path) -> str:
    if not (folder / VAE).exists():
        raise ValueError(f"{folder / VAE} does not exist; train it with python -m benchmarks.mini vae.")
    return hashlib.sha256((folder / VAE).read_bytes()).hexdigest()


def _facts(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()
