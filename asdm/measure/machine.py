"""The machine under a measurement: torch's settings, free memory, the environment, and its other load."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from asdm import __version__
from asdm.records.measurement import HostUse

SPARE_BYTES = 1 << 29  # for Python, torch and the scratch space of a forward


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
        "asdm": __version__,
    }
    for package in ("torch", "diffusers", "transformers", "onnxruntime", "openvino"):
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
