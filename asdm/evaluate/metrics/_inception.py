"""The Inception of FID, KID and IS: torch-fidelity's, with the weights of the original TensorFlow graph."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from asdm.evaluate.metrics import JudgedImages
from asdm.utils import console

NETWORK = "inception"
GET_IT = (
    "name pt_inception's weights as safetensors (--network inception=FILE), or let torch.hub download them once "
    "where there is a network"
)


class Inception:
    """`network(images)` for images (b, 3, h, w) in [-1, 1]: 2,048 pooled features and 1,008 logits without bias.

    Pictures are rounded to 8 bits and scaled to 299×299 as TensorFlow 1 does, which is how the literature's numbers
    come about (torch-fidelity; torchmetrics with `antialias=False`).
    """

    def __init__(self, extractor: Any) -> None:
        self.extractor = extractor

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.extractor(in_8_bits(images)), dim=1)


def in_8_bits(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as 0 … 255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def load_network(where: str | None) -> Inception:
    """The network with the weights in a safetensors file, or with those that torch.hub downloads and keeps."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    except ModuleNotFoundError:
        raise ValueError(
            "FID, KID and IS need the package torch-fidelity, which is not installed; pip install 'asdm-prof[quality]'."
        ) from None
    weights = _weights(where, fidelity.URL_INCEPTION_V3)
    own_pickle = io.BytesIO()  # the constructor unpickles what it is given without care
    torch.save(weights, own_pickle)
    own_pickle.seek(0)
    names = ["2048", "logits_unbiased"]
    try:
        return Inception(fidelity.FeatureExtractorInceptionV3("inception-v3-compat", names, own_pickle))
    except RuntimeError:
        raise ValueError(f"{where} does not hold the weights of FID's Inception.") from None


def _weights(where: str | None, url: str) -> dict[str, torch.Tensor]:
    from asdm.models import checkpoints

    if where:
        if not Path(where).is_file():
            raise ValueError(f"the weights of FID's Inception, {where}, do not exist.")
        checkpoints.check_suffix(Path(where))
        return checkpoints.read_tensors(Path(where))
    try:
        with redirect_stdout(sys.stderr):  # torch.hub writes on stdout, which is for results
            return torch.hub.load_state_dict_from_url(url, progress=False, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = console.first_line(error)
        raise ValueError(f"the weights of FID's Inception are not available ({reason}); {GET_IT}.") from None


def features(images: JudgedImages, network: Any) -> torch.Tensor:
    """(n, 2048), or all that another network gives but its logits."""
    both, logits = images.through(NETWORK, network), _width_of_logits(network)
    return both[:, : both.shape[1] - logits]


def logits(images: JudgedImages, network: Any) -> torch.Tensor:
    """(n, 1008)."""
    both, width = images.through(NETWORK, network), _width_of_logits(network)
    return both[:, both.shape[1] - width :]


def _width_of_logits(network: Any) -> int:
    return getattr(network, "logits", 1008)
