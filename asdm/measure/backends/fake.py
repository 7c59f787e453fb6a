"""A simulated runtime: every part takes its MACs at a fixed rate, with seeded noise.

It needs neither weights nor time, for trying out plans, reports and scripts, and for tests with exact results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from asdm.measure.clocks import Clock
from asdm.unet import flops
from asdm.unet.blocks import OTHER, Part

NEEDS_WEIGHTS, HOOKED = False, False
WEIGHT_COPIES, ACTIVATION_COPIES = 0, 0
DTYPES, DEVICES = ("fp32", "bf16", "fp16"), ()
SECONDS_PER_MAC = 1e-11
SECONDS_PER_PART = 1e-3
NOISE = 0.01


class FakeSession:
    """Times by arithmetic: `SECONDS_PER_PART + macs · SECONDS_PER_MAC`, each run 1 % noisy."""

    attribution = None

    def __init__(self, times: dict[str, float]) -> None:
        self.times, self.rng = times, np.random.default_rng(0)

    def run(self) -> float:
        return self.run_parts()[0]

    def run_parts(self) -> tuple[float, dict[str, float]]:
        times = {fqn: t * float(1 + NOISE * self.rng.standard_normal()) for fqn, t in self.times.items()}
        whole = sum(times.values())
        return whole, {fqn: t for fqn, t in times.items() if fqn != OTHER}

    def output(self) -> None:
        return None


def open_session(unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> FakeSession:
    """Times computed from the MACs of the UNet, which may be on the meta device; the clock is not used."""
    meta = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), inputs)
    counted = flops.count(unet, (), meta, parts)
    by_part = counted.by_part or {OTHER: counted.total}
    return FakeSession({fqn: SECONDS_PER_PART + macs.macs * SECONDS_PER_MAC for fqn, macs in by_part.items()})
