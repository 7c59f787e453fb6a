"""The roofline: whether arithmetic, memory or calls bound a unit, against peaks measured in the same run.

A machine has several peaks, since every runtime reaches its own rate in each dtype. The arithmetic peak is therefore
measured in the profiled backend: the faster of a square matrix product and a 3×3 convolution. Bandwidth is a triad
a = b + s·c over arrays that no cache holds, three transfers per element. The cost of a call is that of one of many tiny
layers in a row.

Conventions: one MAC is two FLOPs; a unit moves its parameters and the activations that go in and out once (what is
moved between the operators inside is taken as cached); it makes as many calls as it has operators in eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from asdm.measure.clocks import Clock, timed
from asdm.models.execution import dtype_of
from asdm_prof.records import Bound, Peaks, Roofline

SECONDS_EACH = 2.0  # of the four calibrations
GEMM, CONV_CHANNELS, CONV_SIZE = 2048, 320, 64
CALLS, CALL_WIDTH = 200, 8
TRIAD_BYTES = 1 << 27  # of each of its three arrays


def calibrate(backend: Any, dtype: str, device: str, clock: Clock) -> Peaks:
    """Peaks of this machine by the backend's own kernels, in about ten seconds."""

    def best(module: nn.Module, *shape: int) -> float:
        module = module.to(device, dtype_of(dtype)).eval()
        inputs = {"input": torch.rand(shape, dtype=torch.float32).to(device, dtype_of(dtype))}
        return _best(backend.open_session(module, inputs, (), clock).run)

    gemm_s = best(nn.Linear(GEMM, GEMM, bias=False), GEMM, GEMM)
    conv_s = best(nn.Conv2d(CONV_CHANNELS, CONV_CHANNELS, 3, padding=1), 1, CONV_CHANNELS, CONV_SIZE, CONV_SIZE)
    calls_s = best(nn.Sequential(*(nn.Linear(CALL_WIDTH, CALL_WIDTH) for _ in range(CALLS))), 1, CALL_WIDTH)
    return Peaks(
        gemm_flops_per_s=2 * GEMM**3 / gemm_s,
        conv_flops_per_s=2 * 9 * CONV_CHANNELS**2 * CONV_SIZE**2 / conv_s,
        bytes_per_s=3 * TRIAD_BYTES / _best(_triad(device, clock)),
        seconds_per_call=calls_s / CALLS,
    )


def _triad(device: str, clock: Clock) -> Callable[[], float]:
    b, c = (torch.ones(TRIAD_BYTES // 4, device=device) for _ in range(2))
    a = torch.empty_like(b)
    return lambda: timed(lambda: torch.add(b, c, alpha=3.0, out=a), clock)


def _best(call: Callable[[], float]) -> float:
    """The shortest of the calls that fit into the time: a peak is the speed of the undisturbed machine."""
    times = [call(), call()]
    while sum(times) < SECONDS_EACH and len(times) < 1000:
        times.append(call())
    return min(times[1:])


def place(macs: int, moved_bytes: int, calls: int, latency_s: float, peaks: Peaks) -> Roofline:
    """A unit on the roofline: the least time by each peak, which of them is longest, and how near the unit comes."""
    least: dict[Bound, float] = {
        "compute": 2 * macs / peaks.flops_per_s,
        "memory": moved_bytes / peaks.bytes_per_s,
        "overhead": calls * peaks.seconds_per_call,
    }
    bound = max(least, key=lambda name: least[name])
    return Roofline(
        compute_s=least["compute"],
        memory_s=least["memory"],
        overhead_s=least["overhead"],
        bound=bound,
        attained=max(least["compute"], least["memory"]) / latency_s,
    )
