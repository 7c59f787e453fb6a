"""The diffusion model's own loss: the prediction against the noise, or the velocity, that was added."""

from __future__ import annotations

import torch

from asdm.distill.losses import LossInputs, snr_weight, squared_distance

COMPARES = "predictions"
MODES = ("end_to_end", "blockwise")


def loss(inputs: LossInputs) -> torch.Tensor:
    """Squared error weighted by Min-SNR (b,)."""
    return squared_distance(inputs.prediction, inputs.target, False) * snr_weight(inputs)
