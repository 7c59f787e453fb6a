"""The mini's networks, one file each. Order of training: vae, clip, unet; vgg and judge are independent.

A file defines `FOLDER`, the name of what is trained; `PICTURES`, how many it takes; `training_task(pictures, output) ->
TrainingTask`; and `ship(module, folder)`, which writes what users load, in fp16. `output` holds one folder for each
trained part.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from asdm.data.datasets import emoji
from asdm.utils.io import write_whole

SMALL = 64  # pixels: what the UNet sees first, and what the networks beside it see


def load_drawings(*splits: str, size: int = SMALL) -> emoji.Emoji:
    """The drawings of several splits."""
    first, *more = (emoji.open_data(split, size) for split in splits)
    for other in more:
        first = first + other
    return first


def augment(images: torch.Tensor, generator: torch.Generator, pixels: int = 3, size: int | None = None) -> torch.Tensor:
    """(b, 3, s, s) moved by up to `pixels` each, half of them mirrored, on white; with `size`, a crop of that size."""
    b, _, s, _ = images.shape
    size = size or s
    padded = F.pad(images, (pixels,) * 4, value=1.0)
    dx, dy = (torch.randint(0, s - size + 2 * pixels + 1, (b, 1), generator=generator) for _ in range(2))
    rows, columns = dy + torch.arange(size), dx + torch.arange(size)  # (b, size) each
    mirror = torch.rand(b, 1, generator=generator) < 0.5
    columns = torch.where(mirror, columns.flip(1), columns)
    at = torch.arange(b)[:, None, None]
    return padded.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def to_half(module: nn.Module) -> Any:
    """A copy in fp16, as it ships."""
    return nn.Module.half(copy.deepcopy(module))


def ship_network(module: nn.Module, config: Mapping[str, object], folder: Path) -> None:
    """config.json and model.safetensors in fp16."""
    tensors = {name: tensor.contiguous() for name, tensor in to_half(module).state_dict().items()}
    write_whole(folder / "config.json", json.dumps(dict(config), allow_nan=False) + "\n", force=True)
    write_whole(folder / "model.safetensors", save(tensors), force=True)
