"""torch.compile of the whole UNet, in torch's mode `default`, or as `compiled:reduce-overhead` (with CUDA graphs) or
`compiled:max-autotune` (with CUDA graphs, and each kernel the fastest of several).

A hook inside a compiled graph would break it, and the compiler fuses across units, so a unit has no time of its own
in there. Part times come from a second form of the same call, in which every part is compiled by itself and the rest
is left as it is; they are scaled to a bare run of the whole beside it. Where the whole runs as CUDA graphs, so does
this form. How much slower the second form is, and how much of it lies in the parts, is recorded: where fusing across
units gains little, the scale is near 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from asdm.measure.backends import Attribution, cudagraph
from asdm.measure.backends.cudagraph import Replay
from asdm.measure.clocks import Clock, timed
from asdm.measure.marks import PartMarks
from asdm.records.measurement import device_kind
from asdm.unet.blocks import Part

NEEDS_WEIGHTS, HOOKED = True, False
WEIGHT_COPIES, ACTIVATION_COPIES = 0, 0
DTYPES, DEVICES = ("fp32", "bf16", "fp16"), ()  # all devices of torch's
GRAPHS = 256  # one for each unit: torch's own limit of graphs per function is 8, beyond which it stops compiling
MODES = ("reduce-overhead", "max-autotune")
# The modes of single parts, which are captured together.
WITHOUT_CUDA_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


def check_mode(mode: str, device: str) -> None:
    """Raises ValueError where a mode's CUDA graphs cannot be timed part by part."""
    if mode in WITHOUT_CUDA_GRAPHS and device_kind(device) == "cuda":
        cudagraph.check_events(f"compiled:{mode}")


class CompiledSession:
    """The UNet, compiled as a whole for `run` and part by part for `run_parts`; the UNet itself is not changed.

    The first call compiles, which takes minutes for a large UNet.
    """

    def __init__(
        self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock, mode: str = "default"
    ) -> None:
        self.attribution = Attribution()
        self.unet, self.inputs, self.parts, self.clock = unet, inputs, parts, clock
        self.device = next(unet.parameters()).device
        self.replayed = mode in WITHOUT_CUDA_GRAPHS and self.device.type == "cuda"
        self.whole = torch.compile(unet, dynamic=False, mode=mode)
        part_mode = WITHOUT_CUDA_GRAPHS.get(mode, mode)
        self.forwards = {
            module: torch.compile(module.forward, dynamic=False, mode=part_mode) for p in parts for module in p.modules
        }
        self.marks = PartMarks(parts, clock)
        self.compiled = False

    def run(self) -> float:
        if self.parts and not self.compiled:  # before any part is timed
            self._parts()
            self.compiled = True
        return self._timed(self.whole)

    def output(self) -> torch.Tensor:
        with _many_graphs():
            return self.whole(**self.inputs)[0].clone()

    def run_parts(self) -> tuple[float, dict[str, float]]:
        bare_s = self.run()
        whole_s, parts_s = self._parts()
        self.attribution.mapped.append(sum(parts_s.values()) / whole_s)
        self.attribution.slowdown.append(whole_s / bare_s)
        return bare_s, {fqn: part_s * bare_s / whole_s for fqn, part_s in parts_s.items()}

    def _parts(self) -> tuple[float, dict[str, float]]:
        return self._replayed_parts() if self.replayed else self._called_parts()

    def _called_parts(self) -> tuple[float, dict[str, float]]:
        with self._part_by_part(), self.marks.hooked():
            whole_s = self._timed(self.unet)
        return whole_s, self.marks.seconds()

    def _replayed_parts(self) -> tuple[float, dict[str, float]]:
        whole_s = self._replay.seconds()
        return whole_s, self._replay.marks.seconds()

    @cached_property
    def _replay(self) -> Replay:
        with self._part_by_part(), _many_graphs():
            return Replay(lambda: self.unet(**self.inputs), self.parts, self.device)

    def _timed(self, call: Callable[..., Any]) -> float:
        with _many_graphs():
            return timed(lambda: call(**self.inputs), self.clock)

    @contextmanager
    def _part_by_part(self) -> Iterator[None]:
        """Every part's forward compiled, for the length of a `with`."""
        before = {module: module.__dict__.get("forward") for module in self.forwards}
        try:
            for module, forward in self.forwards.items():
                module.__dict__["forward"] = forward
            yield
        finally:
            for module, own in before.items():
                module.__dict__.pop("forward", None)
                if own is not None:  # as hooks of libraries give it one
                    module.__dict__["forward"] = own


@contextmanager
def _many_graphs() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=4 * GRAPHS):
        yield


open_session = CompiledSession
