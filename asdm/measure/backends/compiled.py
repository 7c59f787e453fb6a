"""torch.compile of the whole UNet.

A hook inside a compiled graph would break it, and the compiler fuses across units, so a unit has no time of its own
in there. Part times come from a second form of the same call, in which every part is compiled by itself and the rest
is left as it is; they are scaled to a bare run of the whole beside it. How much slower the second form is, and how
much of it lies in the parts, is recorded: where fusing across units gains little, the scale is near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from asdm.measure.backends import Attribution
from asdm.measure.backends.eager import timed_in_parts
from asdm.measure.clocks import Clock, timed
from asdm.unet.blocks import Part

NEEDS_WEIGHTS, HOOKED = True, False
WEIGHT_COPIES, ACTIVATION_COPIES = 0, 0
DTYPES, DEVICES = ("fp32", "bf16", "fp16"), ()  # all devices of torch's
GRAPHS = 256  # one for each unit: torch's own limit of graphs per function is 8, beyond which it stops compiling


class CompiledSession:
    """The UNet, compiled as a whole for `run` and part by part for `run_parts`; the UNet itself is not changed.

    The first call compiles, which takes minutes for a large UNet.
    """

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        self.attribution = Attribution()
        self.unet, self.inputs, self.parts, self.clock = unet, inputs, parts, clock
        self.whole = torch.compile(unet, dynamic=False)
        self.forwards = {module: torch.compile(module.forward, dynamic=False) for p in parts for module in p.modules}

    def run(self) -> float:
        return self._timed(self.whole)

    def output(self) -> torch.Tensor:
        with _many_graphs():
            return self.whole(**self.inputs)[0]

    def run_parts(self) -> tuple[float, dict[str, float]]:
        bare_s = self.run()
        with self._part_by_part():
            whole_s, parts_s = timed_in_parts(lambda: self._timed(self.unet), self.parts, self.clock)
        self.attribution.mapped.append(sum(parts_s.values()) / whole_s)
        self.attribution.slowdown.append(whole_s / bare_s)
        return bare_s, {fqn: part_s * bare_s / whole_s for fqn, part_s in parts_s.items()}

    def _timed(self, call: Callable[..., Any]) -> float:
        with _many_graphs():
            return timed(lambda: call(**self.inputs), self.clock)

    @contextmanager
    def _part_by_part(self) -> Iterator[None]:
        """Every part's forward compiled, for the length of a `with`."""
        try:
            for module, forward in self.forwards.items():
                module.__dict__["forward"] = forward
            yield
        finally:
            for module in self.forwards:
                module.__dict__.pop("forward", None)


@contextmanager
def _many_graphs() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=4 * GRAPHS):
        yield


open_session = CompiledSession
