"""HPS v2.1: human preference score (Wu et al. 2023), through the package imscore."""

from __future__ import annotations

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, _preference

AGAINST = "real"
NETWORK = "hps_v2"
WEIGHTS = "RE-N-Y/hpsv21"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The score of every image; None without the network. Real images play no part in it."""
    return _preference.score(images, reference, NETWORK)


def load_network(where: str | None) -> _preference.Scorer:
    return _preference.of_imscore("hps.model", "HPSv2", where or WEIGHTS)
