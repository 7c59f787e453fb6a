"""CLIP score: how near an image lies to its own caption."""

from __future__ import annotations

import numpy as np
import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_image

AGAINST = "real"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The score of every image; None without a judge or without captions."""
    if reference.judge is None or not reference.has_captions:
        return None
    return per_image(clip_scores(images.embeddings, reference.caption_embeddings))


def clip_scores(images: torch.Tensor, captions: torch.Tensor) -> np.ndarray:
    """100 · cosine (n,) of the embeddings of images (n, e) and their captions (n, e), at least 0."""
    return (100 * (images * captions).sum(1)).clamp(min=0).numpy()
