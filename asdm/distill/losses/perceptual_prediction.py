"""Semantic-aware supervision read to the letter (§2.5, Fig. 7): the VGG sees both predictions as they are.

The paper puts its VGG "at the end of the teacher and student model", whose outputs are noise or velocity rather than
pictures. This term maps those to RGB as if they were latents; `perceptual` compares the clean latents that they imply.
"""

from __future__ import annotations

import torch

from asdm.distill.losses import LossInputs, perceptual

COMPARES = perceptual.COMPARES
MODES = perceptual.MODES
NETWORK = perceptual.NETWORK
load_network, network_for, check_network = perceptual.load_network, perceptual.network_for, perceptual.check_network


def loss(inputs: LossInputs) -> torch.Tensor:
    """Squared distance of the VGG features of the predictions, mean over layers (b,)."""
    return perceptual.distance(inputs, inputs.prediction, inputs.teacher_prediction)
