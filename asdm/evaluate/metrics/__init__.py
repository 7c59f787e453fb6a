"""Quality metrics: one file each, whose name is the metric's name in bench.json.

A file defines `AGAINST`, which is "real" or "teacher", and `samples(images, target, reference) -> Samples | None`: the
value with the samples that its interval comes from, or None if the reference does not allow it. `target` are the real
images or the teacher's, as `AGAINST` says, in the order of `images`; `reference` holds the captions and the networks
that judge.

Title, direction and least value of a metric stand in `asdm.records.bench.MEASURES`, which is read without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
import torch

from asdm.data.datasets import Example
from asdm.evaluate.generation import GeneratedImages
from asdm.measure.statistics import estimate
from asdm.records.bench import MEASURES, Metric
from asdm.utils import registry

HALVES = 200  # random halves of the images that the interval of a distance comes from
JUDGE_BATCH = 64


class Judge(Protocol):
    """Embeds images (n, 3, h, w) in [-1, 1] and captions as unit vectors; `features` are for distances of sets."""

    def features(self, images: torch.Tensor) -> torch.Tensor: ...
    def image_embedding(self, images: torch.Tensor) -> torch.Tensor: ...
    def text_embedding(self, captions: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class JudgedImages:
    """Images (n, 3, h, w) in [-1, 1], their latents where they have some, and what a judge computes from them once."""

    judge: Judge
    images: torch.Tensor
    latents: torch.Tensor | None = None

    @classmethod
    def of(cls, judge: Judge, generated: GeneratedImages) -> JudgedImages:
        return cls(judge, generated.images, generated.latents)

    @cached_property
    def features(self) -> torch.Tensor:
        """(n, d)."""
        return self._in_batches(self.judge.features)

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """(n, e)."""
        return self._in_batches(self.judge.image_embedding)

    @torch.inference_mode()
    def _in_batches(self, network: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.cat([network(batch).float().cpu() for batch in self.images.split(JUDGE_BATCH)])


@dataclass(frozen=True)
class Reference:
    """Real images with their captions, and the networks that judge."""

    judge: Judge
    vgg: Any
    real: Sequence[Example]
    pool: Sequence[str]  # captions among which an image's own is looked for; with fewer than 200 there is no R@1

    @cached_property
    def captions(self) -> list[str]:
        return [example.caption for example in self.real]

    @cached_property
    def caption_embeddings(self) -> torch.Tensor:
        """(n, e)."""
        return self.judge.text_embedding(self.captions).float().cpu()

    @cached_property
    def real_images(self) -> JudgedImages:
        return JudgedImages(self.judge, torch.stack([example.image for example in self.real]))


@dataclass(frozen=True)
class Samples:
    """A metric's value with its samples: one per image, or the distance of each random half of the images."""

    value: float
    of: Literal["pictures", "halves"]
    each: np.ndarray

    def metric(self) -> Metric:
        """The value with its 95 % interval.

        Halves are drawn without replacement, since an image that a bootstrap draws twice is a duplicate that no model
        made. The variance of a half around the mean of the halves is that of the whole set.
        """
        if self.of == "pictures":
            return mean(self.each)
        low, high = np.quantile(self.each - self.each.mean(), [0.025, 0.975])
        return Metric(value=self.value, low=self.value + float(low), high=self.value + float(high))


def per_image(values: np.ndarray) -> Samples:
    """The mean of one value per image."""
    return Samples(float(values.mean()), "pictures", values)


def per_half(
    distance: Callable[[torch.Tensor, torch.Tensor], float], images: torch.Tensor, target: torch.Tensor
) -> Samples:
    """A distance of two sets of features (n, d), and that of 200 random halves, the same ones each time.

    Row i of both belongs to the same caption.
    """
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randperm(len(target), generator=generator)[: len(target) // 2] for _ in range(HALVES)]
    each = np.array([distance(images[half], target[half]) for half in halves])
    return Samples(distance(images, target), "halves", each)


def mean(values: np.ndarray) -> Metric:
    """The mean of one value per image, with its 95 % bootstrap interval."""
    interval = estimate(values.tolist(), np.mean)
    return Metric(value=interval.median, low=interval.low, high=interval.high)


def modules(against: Literal["real", "teacher"]) -> dict[str, ModuleType]:
    """The metrics that compare with real images or with the teacher's, by name, in the order of `MEASURES`."""
    names = sorted(registry.names(__name__), key=lambda name: [*MEASURES, name].index(name))
    loaded = {name: registry.load(__name__, name) for name in names}
    return {name: module for name, module in loaded.items() if against == module.AGAINST}
