"""Kernel distance between the features of generated and real images (KID with the judge's features)."""

from __future__ import annotations

import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_half

AGAINST = "real"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The distance with that of random halves; None without a judge."""
    if reference.judge is None:
        return None
    return per_half(kernel_distance, images.features, target.features)


def kernel_distance(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Unbiased squared MMD of two equally large sets of features (n, d) under KID's cubic kernel."""
    from torchmetrics.image.kid import poly_mmd

    return float(poly_mmd(real.double(), generated.double()))
