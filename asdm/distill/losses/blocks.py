"""Blockwise distillation: each trained block against the teacher's block, given the teacher's own inputs."""

from __future__ import annotations

import torch

from asdm.distill.losses import LossInputs, map_distances

COMPARES = "block_outputs"
MODES = ("blockwise",)


def loss(inputs: LossInputs) -> torch.Tensor:
    """Mean over the blocks' outputs and skips (b,)."""
    return map_distances(inputs).mean(0)
