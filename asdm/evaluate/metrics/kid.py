"""KID: kernel distance between the Inception features of generated and real images (Bińkowski et al. 2018)."""

from __future__ import annotations

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
    each = kernel_distances(own, real)
    few = len(own) < SUBSET
    note = f"subsets of {len(own) // 2:,} pictures, as there are fewer than {SUBSET:,}" if few else None
    return Samples(float(each.mean()), "halves", each.numpy(), note)


def kernel_distances(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The distance of each of 100 random subsets of two sets of features (n, d), drawn as torchmetrics draws them."""
    from torchmetrics.image.kid import poly_mmd

    n = min(len(generated), len(real))
    size = SUBSET if n >= SUBSET else max(n // 2, 1)
    distances = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(SUBSETS):
            own_real = real[torch.randperm(len(real))[:size]]
            distances.append(poly_mmd(own_real, generated[torch.randperm(len(generated))[:size]]))
    return torch.stack(distances)
