"""Semantic-aware supervision (§2.5, Fig. 7): the features of both predictions in a frozen VGG.

The paper puts a VGG "at the end of the teacher and student model". Their outputs are predictions in 4-channel latents
and a VGG takes images. What we chose: predict x̂₀, map its latents to RGB with a fixed matrix (the adapter), enlarge
images that are too small for the VGG, and compare relu1_2 … relu4_3. At high noise x̂₀ is a guess for student and
teacher alike, so an image is weighted by ᾱ_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.data import datasets, loader
from asdm.data.choice import is_emoji
from asdm.distill.context import TrainContext
from asdm.distill.losses import LossInputs, predicted_clean, squared_distance
from asdm.distill.settings import DistillSettings
from asdm.models.networks import Vgg, imagenet_vgg_weights
from asdm.utils.io import write_whole

COMPARES = "predictions"
NETWORK = "VGG"
MODES = ("end_to_end", "blockwise")
LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
SMALLEST = 32  # pixels per side
ADAPTER_IMAGES = 64
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def loss(inputs: LossInputs) -> torch.Tensor:
    """Squared distance of the VGG features of x̂₀, mean over layers, weighted by ᾱ_t (b,)."""
    clean = [predicted_clean(inputs, one) for one in (inputs.prediction, inputs.teacher_prediction)]
    return distance(inputs, *clean) * inputs.alpha


def distance(inputs: LossInputs, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of the VGG features of two sets of latents (b, 4, h, w), mean over layers (b,)."""
    ours = inputs.network.features(student)
    with torch.no_grad():
        theirs = inputs.network.features(teacher)
    return torch.stack([squared_distance(a, b, inputs.normalise) for a, b in zip(ours, theirs, strict=True)]).mean(0)


class LatentVgg:
    """A VGG for latents: `features(latents)` gives the feature maps (b, c, h, w) of each layer.

    `adapter` is (3, c + 1): RGB from c latent channels and a constant.
    """

    def __init__(self, vgg: Any, adapter: torch.Tensor) -> None:
        self.vgg, self.adapter = vgg, adapter

    def features(self, latents: torch.Tensor) -> list[torch.Tensor]:
        return self.vgg.features(enlarge(to_rgb(latents, self.adapter)), LAYERS)


def to_rgb(latents: torch.Tensor, adapter: torch.Tensor) -> torch.Tensor:
    """Images (b, 3, h, w) of latents (b, c, h, w), at the size of the latents."""
    weight, bias = adapter[:, :-1], adapter[:, -1]
    return F.conv2d(latents.float(), weight[:, :, None, None], bias)


def enlarge(images: torch.Tensor) -> torch.Tensor:
    """The images with at least 32 pixels on the shorter side, as relu4_3 has an eighth of the resolution."""
    factor = SMALLEST / min(images.shape[-2:])
    return images if factor <= 1 else F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------------------------------------- the frozen network


def load_network(context: TrainContext) -> LatentVgg:
    """The VGG with an adapter for this VAE's latents, fitted to the run's first images and saved in its folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    path, device = context.folder / "adapter.safetensors", context.accelerator.device
    if not path.exists() and context.accelerator.is_main_process:
        latents, images = _adapter_examples(context)
        write_whole(path, save({"adapter": fit_adapter(latents.cpu(), images.cpu())}), force=True)
    context.accelerator.wait_for_everyone()
    try:
        adapter = load_file(path)["adapter"].to(device)
    except (SafetensorError, KeyError):
        raise ValueError(f"{path} is damaged; delete it, and it is fitted again.") from None
    assert context.settings.vgg is not None, "the run has completed its settings"
    return LatentVgg(load_vgg(context.settings.vgg).to(device), adapter)


def _adapter_examples(context: TrainContext) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and images of the run's first examples; where the data are latents, the VAE decodes the images."""
    slots = next(loader.batches(context.data, ADAPTER_IMAGES, 0, loader.Share(), 0, {}, 1)).slots
    latents = torch.stack([encoded.mean for encoded in context.encoder.encode(slots)])
    images = [slot.example.image for slot in slots if isinstance(slot.example, datasets.Example)]
    if images:
        return latents, torch.stack(images)
    from asdm.evaluate.generation import decode_latents

    with torch.no_grad():
        return latents, torch.cat([decode_latents(context.pipeline.vae, part) for part in latents.split(4)])


@torch.no_grad()
def fit_adapter(latents: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The matrix (3, c + 1) that maps latents (n, c, h, w) closest to images (n, 3, H, W) in [-1, 1].

    Least squares over all pixels of the images at the latents' size; valid for the VAE that made the latents.
    """
    small = F.interpolate(images.double(), latents.shape[-2:], mode="area")
    rows = latents.double().permute(0, 2, 3, 1).flatten(0, 2)  # (n·h·w, c)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    ridge = 1e-6 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)  # with few images it would be singular
    solution = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ small.permute(0, 2, 3, 1).flatten(0, 2))
    return solution.T.float().contiguous()


class ImagenetVgg(nn.Module):
    """torchvision's VGG-16 with its ImageNet weights, which torchvision downloads, behind `Vgg`'s interface."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        try:
            weights = imagenet_vgg_weights()
        except ValueError as error:
            raise ValueError(
                f"{error}; name a folder for the perceptual term (--vgg DIR), or leave it out (--weight perceptual=0)."
            ) from None
        whole = vgg16()
        whole.load_state_dict(weights)
        self.trunk = whole.features[:23].eval().requires_grad_(False)
        self.taps = {3: "relu1_2", 8: "relu2_2", 15: "relu3_3", 22: "relu4_3"}

    def features(self, images: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """Feature maps (b, c, h, w) of (b, 3, h, w) in [-1, 1]."""
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        x, maps = ((images + 1) / 2 - mean) / std, {}
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            maps[self.taps.get(i)] = x
        return [maps[name] for name in names]


def network_for(settings: DistillSettings) -> str:
    """The VGG that a run takes, in words."""
    name = settings.vgg or vgg_for(str(settings.data))
    return "the bundled VGG, which was trained on emoji" if name == "mini" else f"the VGG {name}"


def check_network(settings: DistillSettings) -> None:
    """Raises ValueError, before a run begins, where the VGG cannot be had."""
    load_vgg(settings.vgg or vgg_for(str(settings.data)))


def vgg_for(data: str) -> str:
    """The VGG that suits a data set, where none is named."""
    return "mini" if is_emoji(data) else "imagenet"


def load_vgg(name: str) -> Any:
    """`mini` (trained on emoji, ships here), `imagenet` (torchvision's), or a folder like the one that ships."""
    if name == "mini":
        return Vgg.load()
    if name == "imagenet":
        return ImagenetVgg()
    if not (Path(name) / "config.json").exists():
        raise ValueError(f"unknown VGG {name!r}; choose mini, imagenet, or a folder with a config.json in it.")
    return Vgg.load(Path(name))
