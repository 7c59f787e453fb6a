"""KID: kernel distance between the Inception features of generated and real images (Bińkowski et al. 2018)."""

from __future__ import annotations

import math

import numpy as np
import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, _inception

AGAINST = "real"
NETWORK, load_network = _inception.NETWORK, _inception.load_network
SUBSETS, SUBSET = 100, 1000  # subsets and pictures of each, as in the paper


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """torchmetrics' mean over random subsets, the same ones each time; None without the network."""
    network = reference.networks.get(NETWORK)
    if network is None:
        return None
    own, real = (_inception.features(one, network) for one in (images, target))
    n = min(len(own), len(real))
    half = max(n // 2, 1)
    subsets = kernel_distances(own, real, SUBSET if n >= SUBSET else half)
    note = f"subsets of {half:,} pictures, as there are fewer than {SUBSET:,}" if n < SUBSET else None
    return Samples(float(subsets.mean()), "halves", as_halves(own, real, subsets), note)


def as_halves(own: torch.Tensor, real: torch.Tensor, subsets: torch.Tensor) -> np.ndarray:
    """The subsets' distances around their mean, as far apart as those of random halves would be.

    A subset of m of n pictures is away from all of them with √(n/m − 1) times the whole set's standard error: once for
    a half, and never where it is the whole set. Subsets of more than a half are therefore drawn anew as halves.
    """
    n = min(len(own), len(real))
    size = min(SUBSET, max(n // 2, 1))
    drawn = subsets if n < SUBSET or n >= 2 * SUBSET else kernel_distances(own, real, size)
    spread = (drawn - drawn.mean()) / math.sqrt(n / size - 1) if n > size else torch.zeros_like(drawn)
    return (subsets.mean() + spread).numpy()


def kernel_distances(generated: torch.Tensor, real: torch.Tensor, size: int) -> torch.Tensor:
    """The distance of each of 100 random subsets of two sets of features (n, d), drawn as torchmetrics draws them."""
    from torchmetrics.image.kid import poly_mmd

    distances = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(SUBSETS):
            own_real = real[torch.randperm(len(real))[:size]]
            distances.append(poly_mmd(own_real, generated[torch.randperm(len(generated))[:size]]))
    return torch.stack(distances)
