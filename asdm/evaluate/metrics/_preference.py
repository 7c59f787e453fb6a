"""Preference scores: networks that were trained on which of two images of a prompt people like better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_image
from asdm.utils import console

Scorer = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]  # images (b, 3, h, w) in [-1, 1], captions → (b,)


@torch.inference_mode()
def score(images: JudgedImages, reference: Reference, network: str) -> Samples | None:
    """The score of every image for its caption; None without the network or without captions."""
    scorer: Scorer | None = reference.networks.get(network)
    if scorer is None or not reference.has_captions:
        return None
    captions = reference.captions
    each = [
        scorer(images.source.images_in(rows), captions[rows.start : rows.stop]).flatten().float().cpu()
        for rows in images.batches
    ]
    return per_image(torch.cat(each).numpy())


def of_imscore(module: str, name: str, where: str) -> Scorer:
    """A scorer of the package imscore with the weights of a hub id or a folder."""
    import importlib

    try:
        loader: Any = getattr(importlib.import_module(f"imscore.{module}"), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} needs the package {error.name!r}, which is not installed; pip install imscore."
        ) from None
    try:
        network = loader.from_pretrained(where).eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = console.first_line(error)
        raise ValueError(f"the weights {where} of {name} are not available: {reason}.") from None
    return lambda images, captions: network.score((images + 1) / 2, list(captions))
