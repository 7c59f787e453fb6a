"""The small VGG of the perceptual loss, for use without ImageNet's weights: a classifier of subcategories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.models.networks import Vgg
from benchmarks.mini.parts import augment, load_drawings, ship_network
from benchmarks.mini.training import LossTerms, TrainingTask

FOLDER = "vgg"
PICTURES = 38_400


def training_task(pictures: int, folder: Path) -> TrainingTask:
    """Classify every drawing that is not held out."""
    data = load_drawings("train", "others")
    images, classes = data.images(), sorted(set(data.subcategories))
    labels = torch.tensor([classes.index(kind) for kind in data.subcategories])
    torch.manual_seed(0)
    vgg = Vgg(classes)
    for layer in vgg.trunk:
        if isinstance(layer, nn.Conv2d):  # with torch's default, ten layers without norms do not train
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def loss(indices: torch.Tensor, generator: torch.Generator) -> LossTerms:
        scores = vgg(augment(images[indices], generator))
        right = (scores.argmax(1) == labels[indices]).float().mean()
        return {"loss": F.cross_entropy(scores, labels[indices], label_smoothing=0.1), "right": right}

    return TrainingTask("vgg", vgg, len(images), loss, pictures, batch=64, learning_rate=1e-3)


def ship(vgg: Any, folder: Path) -> None:
    """config.json and model.safetensors."""
    ship_network(vgg, vgg.config, folder)
