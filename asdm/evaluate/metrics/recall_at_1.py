"""R@1: the share of images whose own caption is the nearest among 200."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from asdm.evaluate.metrics import Judge, JudgedImages, Reference, Samples, per_image

AGAINST = "real"
CANDIDATES = 200


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """Whether each image's caption is found; None where there are too few captions to choose from."""
    if reference.judge is None or len(set(reference.pool)) < CANDIDATES:
        return None
    return per_image(recalls(reference.judge, images.embeddings, reference.captions, reference.pool))


def recalls(judge: Judge, embeddings: torch.Tensor, captions: Sequence[str], pool: Sequence[str]) -> np.ndarray:
    """1 for every image (n, e) whose own caption is the nearest among 200 from `pool`, else 0 (n,).

    Raises ValueError where the pool has too few captions.
    """
    others = sorted(set(pool))
    if len(others) < CANDIDATES:
        raise ValueError(f"R@1 needs at least {CANDIDATES} different captions to choose from, got {len(others)}.")
    everything = sorted({*others, *captions})
    texts = dict(zip(everything, judge.text_embedding(everything).float().cpu(), strict=True))
    rng, hits = np.random.default_rng(0), []
    for embedding, caption in zip(embeddings, captions, strict=True):
        wrong = [other for other in rng.permutation(others) if other != caption][: CANDIDATES - 1]
        hits.append(float(texts[caption] @ embedding > max(texts[other] @ embedding for other in wrong)))
    return np.array(hits)
