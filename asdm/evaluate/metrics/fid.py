"""FID: Fréchet distance between the Inception features of generated and real images (Heusel et al. 2017)."""

from __future__ import annotations

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, _inception, per_half
from asdm.evaluate.metrics.frechet_distance import frechet_distance

AGAINST = "real"
NETWORK, load_network = _inception.NETWORK, _inception.load_network


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The distance with that of random halves; None without the network."""
    network = reference.networks.get(NETWORK)
    if network is None:
        return None
    return per_half(frechet_distance, _inception.features(images, network), _inception.features(target, network))
