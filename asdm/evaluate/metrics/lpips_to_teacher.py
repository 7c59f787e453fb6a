"""LPIPS between a student's images and its teacher's from the same seeds (Zhang et al. 2018)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asdm.evaluate.metrics import JudgedImages, Reference, Samples, per_image

AGAINST = "teacher"
NETWORK = "lpips"


def samples(images: JudgedImages, target: JudgedImages, reference: Reference) -> Samples | None:
    """The distance of every image; None without the network."""
    network = reference.networks.get(NETWORK)
    if network is None:
        return None
    with torch.inference_mode():
        each = [network(own, other).flatten().float().cpu().numpy() for own, other in images.beside(target)]
    return per_image(np.concatenate(each))


def load_network(where: str | None) -> Any:
    """torchmetrics' LPIPS on a VGG-16, whose ImageNet weights are in a safetensors file or torchvision downloads."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    trunk = _trunk(where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = _NoTrainLpips(net="vgg", pnet_rand=True)
    own = network.net.state_dict()  # `slice2.5.weight` is torchvision's `features.5.weight`
    try:
        network.net.load_state_dict({name: trunk[f"features.{name.partition('.')[2]}"] for name in own})
    except (KeyError, RuntimeError):
        raise ValueError(f"{where} does not hold the weights of torchvision's VGG-16.") from None
    return network.eval().requires_grad_(False)


def _trunk(where: str | None) -> dict[str, torch.Tensor]:
    """The convolutions of a VGG-16 by torchvision's names."""
    from asdm.models import checkpoints, networks

    if where:
        if not Path(where).is_file():
            raise ValueError(f"the weights of LPIPS's VGG-16, {where}, do not exist.")
        checkpoints.check_suffix(Path(where))
        weights = checkpoints.read_tensors(Path(where))
    else:
        try:
            weights = networks.imagenet_vgg_weights()
        except ValueError as error:
            raise ValueError(f"{error}; name it as safetensors (--network lpips=FILE).") from None
    return {name: tensor for name, tensor in weights.items() if name.startswith("features.")}
