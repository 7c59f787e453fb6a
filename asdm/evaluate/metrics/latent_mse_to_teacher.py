"""Mean squared difference between a student's latents and its teacher's from the same seeds."""

from __future__ import annotations

import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_image

AGAINST = "teacher"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples:
    """The mean squared difference of every image's latent."""
    each = [(own - other).square().mean((1, 2, 3)) for own, other in images.latents_beside(target)]
    return per_image(torch.cat(each).numpy())
