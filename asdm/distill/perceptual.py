"""The frozen VGG behind both outputs, and the latent→RGB adapter in front of it (§2.5, Fig. 7).

The paper puts a VGG "at the end of the teacher and student model". Outputs are predictions in 4-channel latents, and
a VGG wants pictures, so here is what we chose: predict x̂₀, take latents to RGB by a fixed matrix, enlarge where the
picture is smaller than the VGG cares for, and compare relu1_2 … relu4_3. At high noise x̂₀ is a guess of both, so a
picture counts by ᾱ_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.distill.losses import LossInputs, predicted_clean, squared_distance
from asdm.models.networks import Vgg

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
SMALLEST = 32  # pixels per side
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualLoss:
    """`perceptual(seen)` gives one value per picture (b,): squared distance of VGG features of x̂₀, mean over layers.

    `adapter` is (3, c + 1): RGB from c latent channels and a constant.
    """

    def __init__(self, vgg: Any, adapter: torch.Tensor) -> None:
        self.vgg, self.adapter = vgg, adapter

    def __call__(self, seen: LossInputs) -> torch.Tensor:
        ours = self._features(predicted_clean(seen, seen.prediction))
        with torch.no_grad():
            theirs = self._features(predicted_clean(seen, seen.teacher_prediction))
        found = [squared_distance(a, b, seen.normalise) for a, b in zip(ours, theirs, strict=True)]
        return torch.stack(found).mean(0) * seen.alpha

    def _features(self, latents: torch.Tensor) -> list[torch.Tensor]:
        return self.vgg.features(enlarge(to_rgb(latents, self.adapter)), LAYERS)


def to_rgb(latents: torch.Tensor, adapter: torch.Tensor) -> torch.Tensor:
    """Pictures (b, 3, h, w) of latents (b, c, h, w), at the latents' own size."""
    weight, bias = adapter[:, :-1], adapter[:, -1]
    return F.conv2d(latents.float(), weight[:, :, None, None], bias)


def enlarge(images: torch.Tensor) -> torch.Tensor:
    """`images` with at least 32 pixels on the shorter side: relu4_3 sees an eighth of it."""
    factor = SMALLEST / min(images.shape[-2:])
    return images if factor <= 1 else F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)


@torch.no_grad()
def fit_adapter(latents: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The matrix (3, c + 1) that takes latents (n, c, h, w) nearest to pictures (n, 3, H, W) in [-1, 1].

    Least squares over all pixels of the pictures at the latents' size; it holds for the VAE that made the latents.
    """
    small = F.interpolate(images.double(), latents.shape[-2:], mode="area")
    rows = latents.double().permute(0, 2, 3, 1).flatten(0, 2)  # (n·h·w, c)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    ridge = 1e-6 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)  # few pictures leave it singular
    found = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ small.permute(0, 2, 3, 1).flatten(0, 2))
    return found.T.float().contiguous()


# ---------------------------------------------------------------------------------------------- networks


class ImagenetVgg(nn.Module):
    """torchvision's VGG-16 with its ImageNet weights, which torchvision downloads, behind `Vgg`'s interface."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import VGG16_Weights, vgg16

        try:
            self.trunk = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features[:23].eval().requires_grad_(False)
        except (OSError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(f"cannot fetch torchvision's VGG-16: {first}; choose --vgg mini or a folder.") from None
        self.taps = {3: "relu1_2", 8: "relu2_2", 15: "relu3_3", 22: "relu4_3"}

    def features(self, images: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """Feature maps (b, c, h, w) of (b, 3, h, w) in [-1, 1]."""
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        x, found = ((images + 1) / 2 - mean) / std, {}
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            found[self.taps.get(i)] = x
        return [found[name] for name in names]


def load_vgg(name: str) -> Any:
    """`mini` (trained on emoji, ships here), `imagenet` (torchvision's), or a folder like the one that ships."""
    if name == "mini":
        return Vgg.load()
    if name == "imagenet":
        return ImagenetVgg()
    if not (Path(name) / "config.json").exists():
        raise ValueError(f"unknown VGG {name!r}; choose mini, imagenet, or a folder with a config.json in it.")
    return Vgg.load(Path(name))
