"""The judge, trained on real drawings of all captions, including those that the UNet has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from asdm.models.networks import Judge
from benchmarks.mini.parts import augment, load_drawings, ship_network
from benchmarks.mini.training import LossTerms, TrainingTask

FOLDER = "judge"
PICTURES = 512_000


def training_task(pictures: int, folder: Path) -> TrainingTask:
    """Match captions and drawings despite noise, blur and small shifts."""
    data = load_drawings("train", "held_out", "train", "held_out", "others")  # twice per epoch, as these are judged
    images, captions = data.images(), data.captions
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([number[caption] for caption in captions])
    torch.manual_seed(0)
    judge = Judge(sorted({word for caption in captions for word in Judge.split(caption)}))

    def loss(indices: torch.Tensor, generator: torch.Generator) -> LossTerms:
        degraded = degrade(augment(images[indices], generator), generator)
        text = judge.text_embedding([captions[i] for i in indices])
        scores = judge.log_scale.clamp(max=4.0).exp() * judge.image_embedding(degraded) @ text.T
        matches = torch.arange(len(indices))
        duplicates = (labels[indices] == labels[indices, None]).fill_diagonal_(
            False
        )  # another copy of a drawing is not a mismatch
        scores = scores.masked_fill(duplicates, float("-inf"))
        total = (F.cross_entropy(scores, matches) + F.cross_entropy(scores.T, matches)) / 2
        return {"loss": total, "right": (scores.argmax(1) == matches).float().mean()}

    return TrainingTask("judge", judge, len(images), loss, pictures, batch=128, learning_rate=2e-3, average_over=40_000)


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images with noise of up to 0.2, half of them blurred, so that no single pixel decides."""
    b = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.where(torch.rand(b, 1, 1, 1, generator=generator) < 0.5, blurred, images)
    amount = 0.2 * torch.rand(b, 1, 1, 1, generator=generator)
    return images + amount * torch.randn(images.shape, generator=generator)


def ship(judge: Any, folder: Path) -> None:
    """config.json and model.safetensors."""
    ship_network(judge, judge.config, folder)
