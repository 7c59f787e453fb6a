"""Time and memory of a call: adaptive repeats, paired comparison, intervals. Every raw sample is kept.

The clock is a value, so that a test can hand in one that it moves itself.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from asdm.records.measurement import Estimate, HostUse, Latency

BOOTSTRAP_DRAWS = 2000
Progress = Callable[[int, float], None]  # (calls so far, estimated seconds left)

# ---------------------------------------------------------------------------------------------- clocks


class Clock(Protocol):
    """`mark()` costs next to nothing inside a forward; `seconds(a, b)` may wait for the device."""

    def mark(self) -> Any: ...
    def seconds(self, start: Any, end: Any) -> float: ...
    def synchronize(self) -> None: ...


class HostClock:
    """A CPU's clock: what was called is done when the call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        pass


class EventClock:
    """CUDA events in the stream: marks do not stop the device, reading them does."""

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def mark(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        self._torch.cuda.synchronize()


class SyncClock(HostClock):
    """Any other accelerator: wait for it at every mark."""

    def mark(self) -> float:
        self.synchronize()
        return time.perf_counter()

    def synchronize(self) -> None:
        import torch

        torch.accelerator.synchronize()


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        pass


def clock_for(device: str) -> Clock:
    """The clock that a device needs: events for CUDA, the host's for a CPU."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        return EventClock()
    return HostClock() if kind == "cpu" else SyncClock()


def timed(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds that one call takes, the device's queue included."""
    clock.synchronize()
    start = clock.mark()
    call()
    end = clock.mark()
    clock.synchronize()
    return clock.seconds(start, end)


# ---------------------------------------------------------------------------------------------- intervals


def estimate(samples: Sequence[float], statistic: Callable[..., Any] = np.median) -> Estimate:
    """Median with its 95 % bootstrap interval; the same samples give the same interval."""
    values = np.asarray(samples, dtype=float)
    if values.size == 0:
        raise ValueError("no samples to estimate from")
    draws = bootstrap(values, statistic)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(median=float(statistic(values)), low=float(low), high=float(high))


def bootstrap(values: np.ndarray, statistic: Callable[..., Any] = np.median) -> np.ndarray:
    """`statistic` of resampled `values`, resampled along the first axis: shape (draws, …)."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), size=(BOOTSTRAP_DRAWS, len(values)))
    return statistic(values[picks], axis=1)


def latency(samples: Sequence[float]) -> Latency:
    """Samples in seconds with their median and its 95 % interval."""
    found = estimate(samples)
    return Latency(median=found.median, low=found.low, high=found.high, samples=tuple(samples))


def relative_half_width(samples: Sequence[float]) -> float:
    """Half of the 95 % interval of the median, as a fraction of the median."""
    found = estimate(samples)
    return (found.high - found.low) / 2 / found.median


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation of two lists."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


# ---------------------------------------------------------------------------------------------- repeats


def warm_up(
    call: Callable[[], float],
    tolerance: float = 0.05,
    at_least: int = 3,
    at_most: int = 20,
    budget_s: float = float("inf"),
) -> list[float]:
    """Call until the last three times agree within `tolerance`, or `budget_s` is spent; `call` returns its seconds."""
    times: list[float] = []
    while len(times) < at_most:
        times.append(call())
        last = times[-3:]
        settled = len(last) >= min(3, at_least) and max(last) <= min(last) * (1 + tolerance)
        if len(times) >= at_least and (settled or sum(times) >= budget_s):
            break
    return times


def interleave(
    calls: Mapping[str, Callable[[], float]],
    pattern: Sequence[str],
    clock: Clock,
    min_rounds: int = 5,
    max_rounds: int = 100,
    budget_s: float = 120.0,
    enough: Callable[[dict[str, list[float]]], bool] = lambda _: True,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Run `calls` in the order of `pattern`, again and again: the i-th samples of two names are neighbours.

    With the pattern A B B A, a drift of the machine falls on both alike. Ends when there are `min_rounds` rounds
    and `enough(samples)` holds, or before the round that would pass `budget_s`; two rounds are always run.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started, rounds, ran = clock.mark(), 0, 0
    while rounds < max_rounds:
        for name in pattern:
            samples[name].append(calls[name]())
            ran += 1
            if progress:
                each = clock.seconds(started, clock.mark()) / ran
                progress(ran, each * max(min_rounds * len(pattern) - ran, len(pattern) - ran % len(pattern)))
        rounds += 1
        spent = clock.seconds(started, clock.mark())
        done = rounds >= min_rounds and enough(samples)
        if done or (rounds >= 2 and spent + spent / rounds > budget_s):
            break
    return samples


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """Ratio of two interleaved series, pair by pair: median and its 95 % interval."""
    return estimate(np.asarray(numerator) / np.asarray(denominator))


# ---------------------------------------------------------------------------------------------- machine


@contextmanager
def quiet_torch(threads: int | None) -> Iterator[int]:
    """Inference mode, a fixed number of threads, denormals flushed; yields the number of threads."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        with torch.inference_mode():
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def free_memory_bytes(device: str) -> int:
    """Bytes that may still be taken on `device`: the smallest of what machine, container and process allow."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return min([psutil.virtual_memory().available, *_container_room(), *_process_room()])


def _container_room() -> list[int]:
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            text = limit.read().strip()
            return [] if text == "max" else [int(text) - int(used.read())]
    except (OSError, ValueError):
        return []


def _process_room() -> list[int]:
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    import psutil

    return [limit - psutil.Process().memory_info().vms]


def require_memory(needed_bytes: int, device: str, what: str) -> None:
    """Say how much is needed before taking it; raises ValueError where it is not there."""
    free = free_memory_bytes(device)
    if free < needed_bytes:
        raise ValueError(
            f"{what} needs about {needed_bytes / 2**30:.1f} GiB on {device} and {max(free, 0) / 2**30:.1f} GiB "
            "are free; choose a smaller --batch, --size or --dtype, or free some memory."
        )


def environment(device: str, threads: int) -> dict[str, str]:
    """What decides a latency: hardware, software and load; two profiles compare only where these agree."""
    import importlib.metadata as metadata

    import psutil

    facts = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": str(psutil.cpu_count(logical=False) or psutil.cpu_count() or "?"),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "threads": str(threads),
        "device": device,
        "python": platform.python_version(),
        "load_1min": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "?",
        "cpu_steal": _cpu_steal(),
    }
    for package in ("torch", "diffusers", "transformers", "asdm", "onnxruntime", "openvino"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    if told := _told_to_malloc():
        facts["malloc"] = told
    if device.startswith("cuda"):
        import torch

        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
    return facts


KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""What tells glibc (2.36 was tried) to keep freed memory, which by default it gives back and the kernel clears anew."""


def _told_to_malloc() -> str:
    """What this process's allocator was told when it started, or which library stands in for it; mostly nothing."""
    told = {name: os.environ[name] for name in KEEP_MEMORY if name in os.environ}
    if preloaded := os.environ.get("LD_PRELOAD"):
        told["LD_PRELOAD"] = " ".join(os.path.basename(path) for path in preloaded.replace(":", " ").split())
    return " ".join(f"{name}={value}" for name, value in told.items())


def in_a_fresh_process(script: str, arguments: Sequence[str], keep_memory: bool) -> str:
    """What a Python script prints in a process of its own, whatever this one's allocator was told.

    glibc reads it when a process starts: there it is told to keep what is freed, or nothing. Raises CalledProcessError
    where the script fails; its own message has gone to stderr.
    """
    told = {key: value for key, value in os.environ.items() if key not in KEEP_MEMORY}
    told |= KEEP_MEMORY if keep_memory else {}
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, env=told, stdout=subprocess.PIPE, text=True, check=True).stdout


class HostWatch:
    """What was taken of the machine since this was made: by other programs, by steal, and by the kernel for us."""

    def __init__(self) -> None:
        self._before = _Reading.now()

    def read(self) -> HostUse:
        now, then = _Reading.now(), self._before
        wall, own = max(now.wall - then.wall, 1e-9), now.own - then.own
        return HostUse(
            others_cores=max(now.busy - then.busy - own, 0.0) / wall,
            steal_cores=(now.steal - then.steal) / wall,
            kernel_share=(now.kernel - then.kernel) / own if own > 0 else None,
            page_faults_per_s=None if now.faults is None or then.faults is None else (now.faults - then.faults) / wall,
        )


class _Reading(NamedTuple):
    """Seconds so far, and page faults where they are counted."""

    wall: float
    busy: float  # of all cores
    own: float  # of this process, in the kernel too
    kernel: float  # of this process
    steal: float
    faults: int | None

    @classmethod
    def now(cls) -> _Reading:
        return cls(*_cpu_seconds(), _page_faults())


def _cpu_seconds() -> tuple[float, float, float, float, float]:
    """The seconds of a reading, in its order."""
    import psutil

    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    steal = getattr(machine, "steal", 0.0)
    guest = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # counted in user and nice already
    return time.perf_counter(), sum(machine) - idle - steal - guest, own.user + own.system, own.system, steal


def _page_faults() -> int | None:
    """Pages that this process was given so far without reading a disk: memory that was fetched anew."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _cpu_steal() -> str:
    """Share of the CPU time since boot that a hypervisor gave to others."""
    import psutil

    times = psutil.cpu_times()
    stolen = getattr(times, "steal", None)
    return "unknown" if stolen is None else f"{stolen / max(sum(times), 1e-9):.4f}"
