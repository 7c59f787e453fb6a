"""Perceptual distance between a student's images and its teacher's from the same seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_image

AGAINST = "teacher"
LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The distance of every image; None without a VGG."""
    if reference.vgg is None:
        return None
    each = [perceptual_distances(reference.vgg, own, other) for own, other in images.beside(target)]
    return per_image(np.concatenate(each))


def perceptual_distances(vgg: Any, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """LPIPS-like distance (n,) of two series of images: squared difference of unit-length VGG features."""
    total = torch.zeros(len(a))
    for ours, theirs in zip(vgg.features(a, LAYERS), vgg.features(b, LAYERS), strict=True):
        difference = nn.functional.normalize(ours, dim=1) - nn.functional.normalize(theirs, dim=1)
        total += difference.square().sum(1).mean((1, 2)).cpu()
    return total.numpy()
