"""Eager PyTorch, with part times from hooks inside the real forward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from asdm.measure.clocks import Clock, timed
from asdm.unet.blocks import Part, hooked

NEEDS_WEIGHTS = True
WEIGHT_COPIES = 0
ACTIVATION_COPIES = 0
HOOKED = True
DTYPES = ("fp32", "bf16", "fp16")
DEVICES = ()  # all of torch's


class EagerSession:
    """Marks go into the stream around each part; they are read after the call, so the device never waits."""

    attribution = None

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        self.unet, self.inputs, self.parts, self.clock = unet, inputs, parts, clock

    def run(self) -> float:
        return timed(lambda: self.unet(**self.inputs), self.clock)

    def output(self) -> torch.Tensor:
        return self.unet(**self.inputs)[0]

    def run_parts(self) -> tuple[float, dict[str, float]]:
        starts: dict[str, list[Any]] = defaultdict(list)
        ends: dict[str, list[Any]] = defaultdict(list)
        mark = self.clock.mark
        with hooked(self.parts, lambda fqn: starts[fqn].append(mark()), lambda fqn: ends[fqn].append(mark())):
            whole = self.run()
        seconds = self.clock.seconds
        return whole, {fqn: sum(seconds(a, b) for a, b in zip(starts[fqn], ends[fqn], strict=True)) for fqn in starts}


def open_session(unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> EagerSession:
    """The UNet itself, with marks of the clock around its parts."""
    return EagerSession(unet, inputs, parts, clock)
