"""How good a UNet's pictures are, judged by a network that has trained none (Fréchet, kernel, CLIP score, R@1).

A `Judge` sees pictures and captions; it is handed in, so that nobody is judged by the network that taught him.
Every figure has its 95 % interval, and stands beside a noise floor: the teacher against itself with other seeds.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from asdm.data.datasets import Example
from asdm.measure.statistics import estimate
from asdm.records.bench import Metric

CANDIDATES = 200  # captions among which a picture's own must be found
DRAWS = 200
THUMBNAIL = 96  # pixels


class Judge(Protocol):
    """Pictures (n, 3, h, w) in [-1, 1] and captions, as vectors of length 1; `features` for distances of sets."""

    def features(self, images: torch.Tensor) -> torch.Tensor: ...
    def image_embedding(self, images: torch.Tensor) -> torch.Tensor: ...
    def text_embedding(self, captions: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Seen:
    """What a judge makes of some pictures."""

    features: torch.Tensor  # (n, d)
    vectors: torch.Tensor  # (n, e)

    @classmethod
    @torch.inference_mode()
    def by(cls, judge: Judge, images: torch.Tensor, batch: int = 64) -> Seen:
        parts = images.split(batch)
        return cls(
            torch.cat([judge.features(part).float().cpu() for part in parts]),
            torch.cat([judge.image_embedding(part).float().cpu() for part in parts]),
        )


@dataclass(frozen=True)
class Samples:
    """What a metric is made of: a value a picture, or the distance of each random half of the pictures."""

    value: float
    of: Literal["pictures", "halves"]
    each: np.ndarray

    def metric(self) -> Metric:
        """The value with its 95 % interval.

        Halves are without replacement, since a picture that a bootstrap draws twice is a twin that no model made. A
        half's variance about the halves' mean is the whole's own.
        """
        if self.of == "pictures":
            return mean(self.each)
        low, high = np.quantile(self.each - self.each.mean(), [0.025, 0.975])
        return Metric(value=self.value, low=self.value + float(low), high=self.value + float(high))


def of_pictures(values: np.ndarray) -> Samples:
    """The mean of one value a picture."""
    return Samples(float(values.mean()), "pictures", values)


# ---------------------------------------------------------------------------------------------- sets of pictures


def frechet_distance(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Fréchet distance of two sets of features (n, d)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsIs(real.shape[1]))
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    return float(metric.compute())


def kernel_distance(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Unbiased squared MMD of two equally large sets of features (n, d) under KID's cubic kernel."""
    from torchmetrics.image.kid import poly_mmd

    return float(poly_mmd(real.double(), drawn.double()))


class _AsIs(nn.Module):
    """torchmetrics wants a network that makes features; these are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def of_sets(
    distance: Callable[[torch.Tensor, torch.Tensor], float], drawn: torch.Tensor, real: torch.Tensor
) -> Samples:
    """A distance of two sets, pair by pair of one caption, and that of 200 random halves, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randperm(len(real), generator=generator)[: len(real) // 2] for _ in range(DRAWS)]
    each = np.array([distance(drawn[half], real[half]) for half in halves])
    return Samples(distance(drawn, real), "halves", each)


# ---------------------------------------------------------------------------------------------- picture by picture


def clip_scores(vectors: torch.Tensor, own: torch.Tensor) -> np.ndarray:
    """100 · cosine (n,) of pictures (n, e) and their captions (n, e), none below 0."""
    return (100 * (vectors * own).sum(1)).clamp(min=0).numpy()


def recalled(judge: Judge, vectors: torch.Tensor, captions: Sequence[str], pool: Sequence[str]) -> np.ndarray:
    """1 for every picture whose own caption is the nearest among 200 from `pool`, else 0 (n,).

    Raises ValueError where the pool has too few captions.
    """
    others = sorted(set(pool))
    if len(others) < CANDIDATES:
        raise ValueError(f"R@1 needs {CANDIDATES} captions to choose from, and there are {len(others)}.")
    everything = sorted({*others, *captions})
    texts = dict(zip(everything, judge.text_embedding(everything).float().cpu(), strict=True))
    rng, found = np.random.default_rng(0), []
    for vector, caption in zip(vectors, captions, strict=True):
        wrong = [other for other in rng.permutation(others) if other != caption][: CANDIDATES - 1]
        found.append(float(texts[caption] @ vector > max(texts[other] @ vector for other in wrong)))
    return np.array(found)


def matched(vectors: torch.Tensor, own: torch.Tensor, others: torch.Tensor, candidates: int = CANDIDATES) -> np.ndarray:
    """1 for every picture (n, e) whose own real one (n, e) is the nearest among `candidates`, else 0 (n,).

    The rest of them are drawn from `others` (m, e). Raises ValueError where those are too few.
    """
    rng, found = np.random.default_rng(0), []
    for vector, right in zip(vectors, own, strict=True):
        wrong = others[~(others == right).all(1)]
        if len(wrong) < candidates - 1:
            raise ValueError(f"a picture is looked for among {candidates}, and there are {len(wrong) + 1}.")
        wrong = wrong[torch.from_numpy(rng.permutation(len(wrong))[: candidates - 1])]
        found.append(float(right @ vector > (wrong @ vector).max()))
    return np.array(found)


def perceptual_distances(vgg: Any, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """LPIPS-like distance (n,) of two series of pictures: unit-length VGG features, squared difference."""
    names = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    total = torch.zeros(len(a))
    for ours, theirs in zip(vgg.features(a, names), vgg.features(b, names), strict=True):
        apart = nn.functional.normalize(ours, dim=1) - nn.functional.normalize(theirs, dim=1)
        total += apart.square().sum(1).mean((1, 2)).cpu()
    return total.numpy()


def mean(values: np.ndarray) -> Metric:
    """Mean of one value a picture, with its 95 % bootstrap interval."""
    found = estimate(values.tolist(), np.mean)
    return Metric(value=found.median, low=found.low, high=found.high)


# ---------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Drawn:
    """Pictures (n, 3, h, w) in [-1, 1] with the latents (n, 4, h', w') that they were decoded from."""

    images: torch.Tensor
    latents: torch.Tensor


@torch.inference_mode()
def draw(
    pipeline: Any,
    captions: Sequence[str],
    first_seed: int,
    steps: int,
    guidance_scale: float,
    tell: Callable[[int, float | None], None] = lambda *_: None,
    batch: int = 16,
    size: int | None = None,
) -> Drawn:
    """One picture a caption; the i-th has seed `first_seed` + i, whoever draws it and in whatever batch."""
    images, latents = [], []
    for start in range(0, len(captions), batch):
        part = list(captions[start : start + batch])
        seeds = [torch.Generator().manual_seed(first_seed + start + i) for i in range(len(part))]
        found = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=seeds,
            output_type="latent",
            height=size,
            width=size,
        ).images
        latents.append(found.float().cpu())
        images.append(decoded(pipeline.vae, found).cpu())
        tell(start + len(part), None)
    return Drawn(torch.cat(images), torch.cat(latents))


def thumbnail(image: torch.Tensor) -> str:
    """A picture (3, h, w) in [-1, 1] as a PNG in base64: 96 pixels per side and 64 colours at most, 2 kB."""
    from PIL import Image

    levels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    picture = Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as pictures in [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample.float().clamp(-1, 1)


# ---------------------------------------------------------------------------------------------- judgement


@dataclass(frozen=True)
class Judgement:
    """Judges UNets' pictures beside their teacher's and beside real ones."""

    judge: Judge
    vgg: Any
    real: Sequence[Example]
    pool: Sequence[str]  # captions among which a picture's own is looked for; with fewer than 200 there is no R@1

    def of(self, everyone: Sequence[Drawn], again: Drawn) -> list[dict[str, Metric]]:
        """Every metric of the teacher, who comes first, and of his students; `again` is his with other seeds."""
        beside = self.beside(everyone[0], again)
        return [beside(drawn) for drawn in everyone]

    def beside(self, teacher: Drawn, again: Drawn) -> Callable[[Drawn], dict[str, Metric]]:
        """What judges a student beside one teacher, who himself is judged only once."""
        theirs, noise, floors = self.alone(teacher), self.alone(again), self._agreement(again, teacher)

        def judged(drawn: Drawn) -> dict[str, Metric]:
            own = theirs if drawn is teacher else self.alone(drawn)
            alone = {
                name: _beside(m, theirs[name].value, abs(theirs[name].value - noise[name].value))
                for name, m in own.items()
            }
            agreed = self._agreement(drawn, teacher)
            return alone | {name: _beside(m, 0.0, floors[name].value) for name, m in agreed.items()}

        return judged

    def alone(self, drawn: Drawn) -> dict[str, Metric]:
        """Distances to the real pictures, and whether a picture shows its caption."""
        return {name: samples.metric() for name, samples in self.samples(drawn).items()}

    def samples(self, drawn: Drawn) -> dict[str, Samples]:
        """What `alone` is made of."""
        seen, real, own = Seen.by(self.judge, drawn.images), self._real, self._captions
        found = {
            "frechet_distance": of_sets(frechet_distance, seen.features, real.features),
            "kernel_distance": of_sets(kernel_distance, seen.features, real.features),
            "clip_score": of_pictures(clip_scores(seen.vectors, own)),
        }
        if len(set(self.pool)) >= CANDIDATES:
            captions = [example.caption for example in self.real]
            found["recall_at_1"] = of_pictures(recalled(self.judge, seen.vectors, captions, self.pool))
        return found

    @cached_property
    def _real(self) -> Seen:
        return Seen.by(self.judge, torch.stack([example.image for example in self.real]))

    @cached_property
    def _captions(self) -> torch.Tensor:
        return self.judge.text_embedding([example.caption for example in self.real]).float().cpu()

    def _agreement(self, drawn: Drawn, teacher: Drawn) -> dict[str, Metric]:
        return {name: samples.metric() for name, samples in self.agreement(drawn, teacher).items()}

    @torch.inference_mode()
    def agreement(self, drawn: Drawn, teacher: Drawn) -> dict[str, Samples]:
        """Distance to the teacher's pictures, one by one: of the same seeds for a student, of others for the floor."""
        return {
            "perceptual_to_teacher": of_pictures(perceptual_distances(self.vgg, drawn.images, teacher.images)),
            "latent_mse_to_teacher": of_pictures((drawn.latents - teacher.latents).square().mean((1, 2, 3)).numpy()),
        }


def _beside(metric: Metric, teacher: float, noise_floor: float) -> Metric:
    return metric.model_copy(update={"teacher": teacher, "noise_floor": noise_floor})
