"""The machine under a measurement: torch's settings, free memory, environment, and load from other programs."""

from __future__ import annotations

import ctypes
import importlib.metadata as metadata
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from asdm import __version__
from asdm.measure.device import is_gpu, on_device
from asdm.records.measurement import HostUse

CGROUP = Path("/sys/fs/cgroup")

SPARE_BYTES = 1 << 29  # for Python, torch and the scratch space of a forward


@contextmanager
def quiet_torch(threads: int | None, device: str = "cpu") -> Iterator[int]:
    """Inference mode on a device, a fixed number of threads, denormals flushed; yields the number of threads."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        with on_device(device), torch.inference_mode():
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def free_memory_bytes(device: str) -> int:
    """Bytes still available on `device`: the smallest of what machine, container and process limit allow."""
    if is_gpu(device):
        import torch

        with torch.cuda.device(device):  # what torch has freed and kept is free for torch
            kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    import psutil

    return min([psutil.virtual_memory().available, *_container_room(), *_process_room()])


def _container_room() -> list[int]:
    """What a container's limit leaves; files that the kernel keeps in memory, and would give up, are not in use."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),  # version 1
    ):
        try:
            text = (CGROUP / limit).read_text().strip()
            counts = dict(line.split() for line in (CGROUP / limit).with_name("memory.stat").read_text().splitlines())
            return [] if text == "max" else [int(text) - int((CGROUP / used).read_text()) + int(counts.get(cached, 0))]
        except (OSError, ValueError):
            continue
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


def require_memory(
    needed_bytes: int, device: str, what: str, remedy: str | None = "a smaller --batch, --size or --dtype"
) -> None:
    """Raises ValueError if less than `needed_bytes` is free on `device`, naming both."""
    free = free_memory_bytes(device)
    if free < needed_bytes:
        raise ValueError(
            f"{what} needs about {needed_bytes / 2**30:.1f} GiB on {device} and {max(free, 0) / 2**30:.1f} GiB "
            f"are free; {f'choose {remedy}, or ' if remedy else ''}free some memory."
        )


def environment(device: str, threads: int) -> dict[str, str]:
    """What a latency depends on: hardware, software and load; profiles compare only if these agree."""
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
        facts[package] = package_version(package)
    if malloc := _malloc_settings():
        facts["malloc"] = malloc
    if is_gpu(device):
        from asdm.measure import gpu

        facts |= gpu.facts(device) | {"tensorrt": package_version("tensorrt")}
        if facts["onnxruntime"] == "not installed":
            facts["onnxruntime"] = package_version("onnxruntime-gpu")
    return facts


def package_version(package: str) -> str:
    """The version of a distribution, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""Makes glibc (tested: 2.36) keep freed memory instead of returning it to the kernel, which clears it again."""


def keep_freed_memory(keep: bool = True) -> bool:
    """Have glibc keep freed memory in this process from now on, or give it back as it does by itself.

    Returns False where there is no glibc. What it does by itself is what its thresholds grow to in a process that frees
    large tensors.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    try:
        glibc = ctypes.CDLL(None)
        mallopt, malloc_trim = glibc.mallopt, glibc.malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    kept = ((mmap_max, 0), (trim_threshold, -1))
    given_back = ((mmap_max, 65536), (mmap_threshold, 32 << 20), (trim_threshold, 64 << 20))
    done = all(mallopt(*setting) for setting in (kept if keep else given_back))
    if not keep:
        malloc_trim(0)
    return done


def _malloc_settings() -> str:
    """Settings of this process's allocator, or the library preloaded in its place; usually empty."""
    settings = {name: os.environ[name] for name in KEEP_MEMORY if name in os.environ}
    if preloaded := os.environ.get("LD_PRELOAD"):
        settings["LD_PRELOAD"] = " ".join(os.path.basename(path) for path in preloaded.replace(":", " ").split())
    return " ".join(f"{name}={value}" for name, value in settings.items())


class HostWatch:
    """Load on the machine since this object was created: other programs, steal, and kernel time of this process."""

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
    """Seconds since boot or process start, and page faults if they are counted."""

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
    """The seconds of a reading, in the order of its fields."""
    import psutil

    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    steal = getattr(machine, "steal", 0.0)
    guest = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # counted in user and nice already
    return time.perf_counter(), sum(machine) - idle - steal - guest, own.user + own.system, own.system, steal


def _page_faults() -> int | None:
    """Minor page faults of this process so far: pages that it got without reading a disk."""
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
    """Share of the CPU time since boot that the hypervisor gave to other machines."""
    import psutil

    times = psutil.cpu_times()
    stolen = getattr(times, "steal", None)
    return "unknown" if stolen is None else f"{stolen / max(sum(times), 1e-9):.4f}"
