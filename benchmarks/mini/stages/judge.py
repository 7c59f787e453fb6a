"""The judge: trained apart, on real drawings only, on all captions; so it knows what the UNet has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from asdm.models.networks import Judge
from benchmarks.mini.stages import seen, shaken, ship_network
from benchmarks.mini.training import Stage, Terms

DEFAULT_STEPS = 4000


def stage(steps: int, folder: Path) -> Stage:
    """Tell which caption goes with which drawing, through noise, blur and small moves."""
    data = seen("train", "held_out", "train", "held_out", "others")  # what is judged is shown twice an epoch
    images, captions = data.images(), data.captions
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([number[caption] for caption in captions])
    torch.manual_seed(0)
    judge = Judge(sorted({word for caption in captions for word in Judge.split(caption)}))

    def loss(indices: torch.Tensor, generator: torch.Generator) -> Terms:
        seen_so = roughened(shaken(images[indices], generator), generator)
        text = judge.text_embedding([captions[i] for i in indices])
        scores = judge.log_scale.clamp(max=4.0).exp() * judge.image_embedding(seen_so) @ text.T
        right = torch.arange(len(indices))
        same = (labels[indices] == labels[indices, None]).fill_diagonal_(False)  # one drawing twice is no mistake
        scores = scores.masked_fill(same, float("-inf"))
        both = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
        return {"loss": both, "right": (scores.argmax(1) == right).float().mean()}

    return Stage("judge", judge, len(images), loss, steps, batch=128, learning_rate=2e-3)


def roughened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of up to 0.2, and half of them blurred, so that no single pixel decides."""
    b = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.where(torch.rand(b, 1, 1, 1, generator=generator) < 0.5, blurred, images)
    amount = 0.2 * torch.rand(b, 1, 1, 1, generator=generator)
    return images + amount * torch.randn(images.shape, generator=generator)


def ship(judge: Any, folder: Path) -> None:
    """config.json and model.safetensors."""
    ship_network(judge, judge.config, folder / "judge")
