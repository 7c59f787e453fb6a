"""Mean squared difference between a student's latents and its teacher's from the same seeds."""

from __future__ import annotations

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_image

AGAINST = "teacher"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples:
    """The mean squared difference of every image's latent."""
    assert images.latents is not None, "generated images have latents"
    assert target.latents is not None, "generated images have latents"
    return per_image((images.latents - target.latents).square().mean((1, 2, 3)).numpy())
