"""Output distillation: the student's prediction against the teacher's."""

from __future__ import annotations

import torch

from asdm.distill.losses import LossInputs, snr_weight, squared_distance

COMPARES = "predictions"
MODES = ("end_to_end", "blockwise")


def loss(inputs: LossInputs) -> torch.Tensor:
    """Squared difference weighted by Min-SNR (b,)."""
    return squared_distance(inputs.prediction, inputs.teacher_prediction, False) * snr_weight(inputs)
