"""IS: how sure an Inception is of each image's class, and how many classes there are (Salimans et al. 2016)."""

from __future__ import annotations

import math

import numpy as np
import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, _inception

AGAINST = "real"
NETWORK, load_network = _inception.NETWORK, _inception.load_network
SPLITS = 10


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The mean over ten splits, as torchmetrics splits; None without the network. Real images play no part in it."""
    network = reference.networks.get(NETWORK)
    if network is None:
        return None
    each = inception_scores(_inception.logits(images, network))
    return Samples(float(each.mean()), "halves", surer(each))


def surer(each: np.ndarray) -> np.ndarray:
    """Scores of splits around their mean, as far apart as means of as many splits would be."""
    nearer: np.ndarray = each.mean() + (each - each.mean()) / math.sqrt(len(each))
    return nearer


def inception_scores(logits: torch.Tensor) -> np.ndarray:
    """The score of each of ten random splits of logits (n, classes): exp of the mean KL to the split's marginal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixed = logits[torch.randperm(len(logits))]
    scores = []
    for part in mixed.chunk(SPLITS):
        log_p = part.log_softmax(dim=1)
        p = log_p.exp()
        scores.append(float((p * (log_p - p.mean(0, keepdim=True).log())).sum(1).mean().exp()))
    return np.array(scores)
