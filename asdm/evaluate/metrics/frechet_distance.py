"""Fréchet distance between the features of generated and real images (FID with the judge's features)."""

from __future__ import annotations

import torch
from torch import nn

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_half

AGAINST = "real"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The distance with that of random halves; None without a judge."""
    if reference.judge is None:
        return None
    return per_half(frechet_distance, images.features, target.features)


def frechet_distance(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Fréchet distance of two sets of features (n, d)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Identity(real.shape[1]))
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


class Identity(nn.Module):
    """torchmetrics expects a network that computes features; it is given features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
