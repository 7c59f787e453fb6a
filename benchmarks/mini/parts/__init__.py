"""The mini's networks, one file each. Order of training: vae, clip, unet; vgg and judge are independent.

A file defines `training_task(steps, folder) -> TrainingTask` and `ship(module, folder)`, which writes what users load,
in fp16. `folder` is where the networks that it depends on were trained.
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


def load_drawings(*splits: str) -> emoji.Emoji:
    """The drawings of several splits."""
    first, *more = (emoji.open_data(split) for split in splits)
    for other in more:
        first = first + other
    return first


def augment(images: torch.Tensor, generator: torch.Generator, pixels: int = 3) -> torch.Tensor:
    """(b, 3, h, w) moved by up to `pixels` each, half of them mirrored, on white."""
    b, _, h, w = images.shape
    padded = F.pad(images, (pixels,) * 4, value=1.0)
    dx, dy = (torch.randint(0, 2 * pixels + 1, (b, 1), generator=generator) for _ in range(2))
    rows, columns = dy + torch.arange(h), dx + torch.arange(w)  # (b, h), (b, w)
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
    write_whole(folder / "config.json", json.dumps(dict(config)) + "\n", force=True)
    write_whole(folder / "model.safetensors", save(tensors), force=True)
