"""Eager PyTorch, with part times from hooks inside the real forward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from asdm.measure.clocks import Clock, timed
from asdm.unet.blocks import Part, hooked

NEEDS_WEIGHTS, HOOKED = True, True
WEIGHT_COPIES, ACTIVATION_COPIES = 0, 0
DTYPES, DEVICES = ("fp32", "bf16", "fp16"), ()  # all devices of torch's


class EagerSession:
    """The UNet itself, with marks of the clock around its parts, which are read after the call: no device waits."""

    attribution = None

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        self.unet, self.inputs, self.parts, self.clock = unet, inputs, parts, clock

    def run(self) -> float:
        return timed(lambda: self.unet(**self.inputs), self.clock)

    def output(self) -> torch.Tensor:
        return self.unet(**self.inputs)[0]

    def run_parts(self) -> tuple[float, dict[str, float]]:
        return timed_in_parts(self.run, self.parts, self.clock)


def timed_in_parts(run: Callable[[], float], parts: Sequence[Part], clock: Clock) -> tuple[float, dict[str, float]]:
    """Seconds of a call of the UNet by `run`, and of each of its parts by fqn."""
    starts: dict[str, list[Any]] = defaultdict(list)
    ends: dict[str, list[Any]] = defaultdict(list)
    with hooked(parts, lambda fqn: starts[fqn].append(clock.mark()), lambda fqn: ends[fqn].append(clock.mark())):
        whole_s = run()
    return whole_s, {fqn: sum(map(clock.seconds, starts[fqn], ends[fqn])) for fqn in starts}


open_session = EagerSession
