"""What a profile on a GPU finds out besides the times of calls: the kernels' own seconds, memory, energy, SDPA kernels.

The kernels' own seconds are those of the same forward as a CUDA graph. Where the profile was taken in eager PyTorch,
what is missing between them and the wall's is the share of launches.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from asdm.measure import backends, gpu
from asdm.measure.attention import sdpa_kernels
from asdm.measure.clocks import Clock
from asdm.unet.blocks import Part
from asdm_prof.profiler.gpu_checks import GpuFindings
from asdm_prof.profiler.settings import ProfileSettings

REPLAYS = 10


class GpuRun:
    """The wall's seconds of calls, and the card while they run."""

    def __init__(self, device: str) -> None:
        self.findings, self.watch = GpuFindings(), gpu.GpuWatch(device)

    def walled(self, run: Callable[[], float]) -> Callable[[], float]:
        """`run`, with what it takes by the wall's clock put down too."""

        def call() -> float:
            began = time.perf_counter()
            seconds = run()
            self.findings.wall_s.append(time.perf_counter() - began)
            return seconds

        return call

    def end(self, calls: int) -> GpuFindings:
        """The findings after so many calls."""
        self.findings.use = self.watch.read(calls)
        return self.findings


def examine(
    findings: GpuFindings,
    unet: nn.Module,
    inputs: dict[str, Any],
    parts: Sequence[Part],
    clock: Clock,
    settings: ProfileSettings,
) -> None:
    """Add what takes calls of its own: the most memory, the SDPA kernels, and the forward as a CUDA graph."""
    weights = sum(p.numel() * p.element_size() for p in unet.parameters())
    findings.peak_bytes = gpu.peak_bytes(lambda: unet(**inputs), settings.device, weights)
    findings.attention_kernels = sdpa_kernels(unet, inputs, parts)
    findings.launched = settings.backend == "eager"
    if not findings.launched:
        return
    try:
        session = backends.load("cudagraph", settings.dtype, settings.device).open_session(unet, inputs, parts, clock)
        for _ in range(REPLAYS):
            findings.kernels_s.append(session.run())
            for fqn, seconds in session.run_parts()[1].items():
                findings.parts_s.setdefault(fqn, []).append(seconds)
    except (ValueError, torch.OutOfMemoryError) as error:
        findings.kernels_s, findings.parts_s = [], {}
        findings.no_graph = str(error).splitlines()[0]
