"""The roofline: whether arithmetic, memory, calls or launches bound a unit, against peaks measured in the same run.

A machine has several peaks, since every runtime reaches its own rate in each dtype. The arithmetic peak is therefore
measured in the profiled backend: the faster of a square matrix product and a 3×3 convolution, on a GPU of growing
size until the rate grows no more. Bandwidth is a triad a = b + s·c over arrays that no cache holds, three transfers per
element. The cost of a call is that of one of many tiny layers in a row; on a GPU, where a call returns before it is
done, that of their kernels inside a CUDA graph.

Conventions: one MAC is two FLOPs; a unit moves its parameters and the activations that go in and out once (what is
moved between the operators inside is taken as cached); it makes as many calls as it has operators in eager PyTorch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from asdm.measure import backends, machine
from asdm.measure.clocks import Clock, timed
from asdm.measure.device import is_gpu
from asdm.models.execution import dtype_of
from asdm_prof.records import Bound, Peaks, Roofline

SECONDS_EACH = 2.0  # of the four calibrations
GEMM, CONV_CHANNELS, CONV_SIZE = 2048, 320, 64
GROWING = (1, 2, 4, 8)  # times GEMM, and pictures in a convolution, on a GPU
GREW = 1.03  # a larger problem is tried while the last one was faster by so much
CALLS, CALL_WIDTH = 200, 8
TRIAD_BYTES = 1 << 27  # of each of its three arrays; on a GPU at least so many times its L2 cache:
TRIAD_CACHES = 8
SHORTEST_S = 1e-9  # what is shorter than a clock's tick is read as 0


def calibrate(backend: Any, dtype: str, device: str, clock: Clock) -> Peaks:
    """Peaks of this machine by the backend's own kernels, in about ten seconds."""
    gpu = is_gpu(device)

    def best(backend: Any, module: nn.Module, *shape: int, seconds: float = SECONDS_EACH) -> float:
        module = module.to(device, dtype_of(dtype)).eval()
        inputs = {"input": torch.rand(shape, dtype=torch.float32, device=device).to(dtype_of(dtype))}
        return _best(backend.open_session(module, inputs, (), clock).run, seconds)

    def product(times: int) -> float:
        n = times * GEMM
        return 2 * n**3 / best(backend, nn.Linear(n, n, bias=False, device=device), n, n, seconds=SECONDS_EACH / times)

    def convolution(batch: int) -> float:
        module = nn.Conv2d(CONV_CHANNELS, CONV_CHANNELS, 3, padding=1)
        return (
            2
            * 9
            * batch
            * CONV_CHANNELS**2
            * CONV_SIZE**2
            / best(backend, module, batch, CONV_CHANNELS, CONV_SIZE, CONV_SIZE, seconds=SECONDS_EACH / batch)
        )

    def call_s() -> float:
        layers = nn.Sequential(*(nn.Linear(CALL_WIDTH, CALL_WIDTH) for _ in range(CALLS)))
        return best(_without_launches(dtype, device) if gpu else backend, layers, 1, CALL_WIDTH) / CALLS

    sizes = [n for n in GROWING if _fits(n, dtype, device)] if gpu else [1]
    rates = highest(product(n) for n in sizes), highest(convolution(n) for n in sizes)
    seconds_per_call = call_s()
    return Peaks(
        gemm_flops_per_s=rates[0],
        conv_flops_per_s=rates[1],
        bytes_per_s=3 * _triad_bytes(device) / _best(_triad(device, clock)),
        seconds_per_call=seconds_per_call,
    )


def highest(rates: Iterator[float]) -> float:
    """The highest of rates at growing sizes, as far as each is clearly higher than the one before."""
    best = next(rates)
    for rate in rates:
        grew = rate > best * GREW
        best = max(best, rate)
        if not grew:
            break
    return best


def _fits(times: int, dtype: str, device: str) -> bool:
    """Whether the three matrices of a product take at most half of what is free."""
    return 3 * (times * GEMM) ** 2 * dtype_of(dtype).itemsize <= machine.free_memory_bytes(device) / 2


def _without_launches(dtype: str, device: str) -> Any:
    """The backend in which a kernel does not wait for Python; eager where there is none."""
    try:
        return backends.load("cudagraph", dtype, device)
    except ValueError:
        return backends.load("eager", dtype, device)


def _triad_bytes(device: str) -> int:
    if not is_gpu(device):
        return TRIAD_BYTES
    return max(TRIAD_BYTES, TRIAD_CACHES * torch.cuda.get_device_properties(device).L2_cache_size)


def _triad(device: str, clock: Clock) -> Callable[[], float]:
    b, c = (torch.ones(_triad_bytes(device) // 4, device=device) for _ in range(2))
    a = torch.empty_like(b)
    return lambda: timed(lambda: torch.add(b, c, alpha=3.0, out=a), clock)


def _best(call: Callable[[], float], seconds: float = SECONDS_EACH) -> float:
    """The shortest of the calls that fit into the time: a peak is the speed of the undisturbed machine."""
    times = [call(), call()]
    while sum(times) < seconds and len(times) < 1000:
        times.append(call())
    return min(times[1:])


def place(
    macs: int, moved_bytes: int, calls: int, latency_s: float, peaks: Peaks, gpu_s: float | None = None
) -> Roofline:
    """A unit on the roofline: the least time by each peak, which of them is longest, and how near the unit comes.

    `gpu_s` are the seconds of its kernels alone; for the rest of its latency the GPU waits for launches.
    """
    least: dict[Bound, float] = {
        "compute": 2 * macs / peaks.flops_per_s,
        "memory": moved_bytes / peaks.bytes_per_s,
        "overhead": calls * peaks.seconds_per_call,
        "launch": 0.0 if gpu_s is None else max(latency_s - gpu_s, 0.0),
    }
    bound = max(least, key=lambda name: least[name])
    return Roofline(
        compute_s=least["compute"],
        memory_s=least["memory"],
        overhead_s=least["overhead"],
        launch_s=None if gpu_s is None else least["launch"],
        bound=bound,
        attained=max(least["compute"], least["memory"]) / max(latency_s, SHORTEST_S),
    )
