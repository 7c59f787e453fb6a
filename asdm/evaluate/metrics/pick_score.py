"""PickScore: which image of a prompt people pick (Kirstain et al. 2023), a fine-tuned CLIP ViT-H/14."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, _preference
from asdm.models.networks import ClipJudge

AGAINST = "real"
NETWORK = "pick_score"
WEIGHTS = "yuvalkirstain/PickScore_v1"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The score of every image; None without the network. Real images play no part in it."""
    return _preference.score(images, reference, NETWORK)


def load_network(where: str | None) -> _preference.Scorer:
    """A CLIP, whose scaled cosine is the score."""
    clip = ClipJudge(where or WEIGHTS)

    def score(images: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        cosine = (clip.image_embedding(images) * clip.text_embedding(captions)).sum(1)
        return clip.clip.logit_scale.exp() * cosine

    return score
