"""Quality metrics: one file each, whose name is the metric's name in bench.json.

A file defines `AGAINST`, which is "real" or "teacher", and `samples(images, target, reference) -> Samples | None`: the
value with the samples that its interval comes from, or None if the reference does not allow it. `target` are the real
images or the teacher's, as `AGAINST` says, in the order of `images`; `reference` holds the captions and the networks
that judge. A metric with a network of its own names it (`NETWORK`) and defines `load_network(where)`, which raises
ValueError in one sentence where its weights are not available; `where` is what the user named, or None.

Title, direction and least value of a metric stand in `asdm.records.bench.MEASURES`, which is read without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
import torch

from asdm.data.datasets import Example
from asdm.evaluate.generation import GeneratedImages, Pictures
from asdm.measure.statistics import estimate
from asdm.records.bench import MEASURES, Metric
from asdm.utils import registry

BY_HALVES = ("frechet_distance", "kernel_distance", "fid", "kid")  # distances of sets, and of halves of them
HALVES = 200  # random halves of the images that the interval of a distance comes from
FEW_HALVES, WIDE = 10, 512  # where features are so wide that each distance takes seconds
JUDGE_BATCH = 64
AGAINST: tuple[Literal["real", "teacher"], ...] = ("real", "teacher")


class Judge(Protocol):
    """Embeds images (n, 3, h, w) in [-1, 1] and captions as unit vectors; `features` are for distances of sets."""

    def features(self, images: torch.Tensor) -> torch.Tensor: ...
    def image_embedding(self, images: torch.Tensor) -> torch.Tensor: ...
    def text_embedding(self, captions: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class JudgedImages:
    """Pictures and what networks compute from them, each once; pictures themselves are read some at a time."""

    judge: Judge | None
    images: torch.Tensor | Pictures  # (n, 3, h, w) in [-1, 1]
    latents: torch.Tensor | None = None
    computed: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, judge: Judge | None, generated: Pictures) -> JudgedImages:
        return cls(judge, generated)

    @property
    def source(self) -> Pictures:
        return GeneratedImages(self.images, self.latents) if isinstance(self.images, torch.Tensor) else self.images

    @property
    def batches(self) -> list[range]:
        n = len(self.source)
        return [range(start, min(start + JUDGE_BATCH, n)) for start in range(0, n, JUDGE_BATCH)]

    @property
    def features(self) -> torch.Tensor:
        """(n, d) of the judge."""
        assert self.judge is not None, "the metric has asked whether there is a judge"
        return self.through("judge features", self.judge.features)

    @property
    def embeddings(self) -> torch.Tensor:
        """(n, e) of the judge."""
        assert self.judge is not None, "the metric has asked whether there is a judge"
        return self.through("judge embeddings", self.judge.image_embedding)

    @torch.inference_mode()
    def through(self, name: str, network: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What a network gives for all images, computed once and remembered by `name`."""
        if name not in self.computed:
            parts = [network(self.source.images_in(rows)).float().cpu() for rows in self.batches]
            self.computed[name] = torch.cat(parts)
        return self.computed[name]

    def beside(self, target: JudgedImages) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some images at a time with those of another series at the same places."""
        for rows in self.batches:
            yield self.source.images_in(rows), target.source.images_in(rows)

    def latents_beside(self, target: JudgedImages) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same of the latents."""
        for rows in self.batches:
            own, other = self.source.latents_in(rows), target.source.latents_in(rows)
            assert own is not None, "generated images have latents"
            assert other is not None, "generated images have latents"
            yield own, other


@dataclass(frozen=True)
class Reference:
    """Real images with their captions, and the networks that judge; a metric whose network is missing is left out."""

    judge: Judge | None
    vgg: Any
    real: Sequence[Example]
    pool: Sequence[str]  # captions among which an image's own is looked for; with fewer than 200 there is no R@1
    networks: Mapping[str, Any] = field(default_factory=dict)  # of metrics that have one of their own
    metrics: Sequence[str] | None = None  # those that are computed; None: all that can be
    real_pictures: Pictures | None = None  # where `real` is too large for memory

    @cached_property
    def captions(self) -> list[str]:
        return [example.caption for example in self.real]

    @property
    def has_captions(self) -> bool:
        return any(self.captions)

    @cached_property
    def caption_embeddings(self) -> torch.Tensor:
        """(n, e)."""
        assert self.judge is not None, "the metric has asked whether there is a judge"
        return self.judge.text_embedding(self.captions).float().cpu()

    @cached_property
    def real_images(self) -> JudgedImages:
        if self.real_pictures is not None:
            return JudgedImages.of(self.judge, self.real_pictures)
        return JudgedImages(self.judge, torch.stack([example.image for example in self.real]))


@dataclass(frozen=True)
class Samples:
    """A metric's value with its samples: one per image, or the distance of each random half of the images."""

    value: float
    of: Literal["pictures", "halves"]
    each: np.ndarray
    note: str | None = None  # what a reader should know about the value

    def metric(self) -> Metric:
        """The value with its 95 % interval.

        Halves are drawn without replacement, since an image that a bootstrap draws twice is a duplicate that no model
        made. The variance of a half around the mean of the halves is that of the whole set.
        """
        if self.of == "pictures":
            return mean(self.each)
        away = self.each - self.each.mean()
        low, high = np.quantile(away, [0.025, 0.975]) if len(away) >= HALVES else (-2 * away.std(), 2 * away.std())
        return Metric(value=self.value, low=self.value + float(low), high=self.value + float(high), note=self.note)


def apart(one: Samples, other: Samples) -> float:
    """How far two sets of pictures of one model are apart by their noise alone, in 95 % of repetitions."""
    difference = one.each - other.each
    if len(difference) < 2:
        return abs(one.value - other.value)
    error = difference.std(ddof=1) / (math.sqrt(len(difference)) if one.of == "pictures" else 1)
    return float(1.96 * error)


def per_image(values: np.ndarray) -> Samples:
    """The mean of one value per image."""
    return Samples(float(values.mean()), "pictures", values)


def per_half(
    distance: Callable[[torch.Tensor, torch.Tensor], float], images: torch.Tensor, target: torch.Tensor
) -> Samples:
    """A distance of two sets of features (n, d), and that of random halves, the same ones each time.

    There are 200 of them, or 10 for features wider than 512. Row i of both belongs to the same caption. Fewer pictures
    than features are noted: their covariance is singular, and a distance between such sets is mostly bias.
    """
    n, width = target.shape
    generator = torch.Generator().manual_seed(0)
    count = HALVES if width <= WIDE else FEW_HALVES
    halves = [torch.randperm(n, generator=generator)[: n // 2] for _ in range(count)]
    each = np.array([distance(images[half], target[half]) for half in halves])
    note = f"{n:,} pictures are fewer than the {width:,} features" if n < width else None
    return Samples(distance(images, target), "halves", each, note)


def mean(values: np.ndarray) -> Metric:
    """The mean of one value per image, with its 95 % bootstrap interval."""
    interval = estimate(values.tolist(), np.mean)
    return Metric(value=interval.median, low=interval.low, high=interval.high)


def modules(against: Literal["real", "teacher"]) -> dict[str, ModuleType]:
    """The metrics that compare with real images or with the teacher's, by name, in the order of `MEASURES`."""
    names = sorted(registry.names(__name__), key=lambda name: [*MEASURES, name].index(name))
    loaded = {name: registry.load(__name__, name) for name in names}
    return {name: module for name, module in loaded.items() if against == module.AGAINST}
