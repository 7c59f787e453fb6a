"""How often the real picture of a generated one's caption is its nearest among many."""

from __future__ import annotations

import numpy as np
import torch

from asdm.evaluate.metrics.recall_at_1 import CANDIDATES


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
