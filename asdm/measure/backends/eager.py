"""Eager PyTorch, with part times from hooks inside the real forward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from asdm.measure.clocks import Clock, timed
from asdm.measure.marks import PartMarks
from asdm.unet.blocks import Part

NEEDS_WEIGHTS, HOOKED = True, True
WEIGHT_COPIES, ACTIVATION_COPIES = 0, 0
DTYPES, DEVICES = ("fp32", "bf16", "fp16"), ()  # all devices of torch's


class EagerSession:
    """The UNet itself, with marks of the clock around its parts, which are read after the call: no device waits."""

    attribution = None

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        self.unet, self.inputs, self.clock = unet, inputs, clock
        self.marks = PartMarks(parts, clock)

    def run(self) -> float:
        return timed(lambda: self.unet(**self.inputs), self.clock)

    def output(self) -> torch.Tensor:
        return self.unet(**self.inputs)[0]

    def run_parts(self) -> tuple[float, dict[str, float]]:
        with self.marks.hooked():
            whole_s = self.run()
        return whole_s, self.marks.seconds()


open_session = EagerSession
