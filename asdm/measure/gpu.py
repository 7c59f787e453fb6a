"""The GPU under a measurement: what its times depend on, by torch and by NVML (the optional package nvidia-ml-py).

What the card, its driver or NVML does not report is left out.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from asdm.records.measurement import GpuUse

# NVML's bits of what holds the clock down; being idle and clocks that the user set are none of them.
SLOWDOWNS = {
    0x004: "its power limit", 0x008: "the hardware", 0x020: "its temperature", 0x040: "its temperature",
    0x080: "the power supply",
}  # fmt: skip
LOOK_EVERY_S = 0.5


class Nvml:
    """One card as NVML sees it; a reading is None where NVML does not report it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle

    @classmethod
    def open(cls, device: str) -> "Nvml | None":
        """The card that torch calls `device`; None without NVML."""
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
        except Exception:  # no package, no driver, or a card that NVML does not know: a MIG slice, say
            return None

    def read(self, name: str, *arguments: Any) -> Any:
        """What `nvmlDeviceGet<name>` says."""
        try:
            return getattr(self.library, f"nvmlDeviceGet{name}")(self.handle, *arguments)
        except (self.library.NVMLError, AttributeError):
            return None

    @property
    def driver(self) -> str | None:
        try:
            version = self.library.nvmlSystemGetDriverVersion()
        except self.library.NVMLError:
            return None
        return version.decode() if isinstance(version, bytes) else str(version)

    @property
    def slowed_by(self) -> list[str]:
        """What holds the clock down at this moment."""
        bits = self.read("CurrentClocksThrottleReasons") or 0
        return list(dict.fromkeys(reason for bit, reason in SLOWDOWNS.items() if bits & bit))

    @property
    def other_processes(self) -> int | None:
        """Processes on the card besides this one, which is one of them whatever number a container gives it."""
        processes = self.read("ComputeRunningProcesses")
        return None if processes is None else max(len(processes) - 1, 0)


# ---------------------------------------------------------------------------------------------- fingerprint


def facts(device: str) -> dict[str, str]:
    """What a latency on this card depends on: hardware, driver and libraries, torch's flags, and the card's state."""
    torch_facts = {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": _text(torch.backends.cudnn.version()),
        "cudnn_benchmark": str(torch.backends.cudnn.benchmark),
        "fp32_products": _precision("matmul"),
        "fp32_convolutions": _precision("conv"),
        "sdpa": " ".join(name for name, enabled in SDPA.items() if enabled()),
    }
    nvml = Nvml.open(device)
    known = torch_facts | (_nvml_facts(nvml) if nvml else {})
    return {name: value for name, value in known.items() if value}


SDPA: dict[str, Callable[[], bool]] = {
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}


def _nvml_facts(nvml: Nvml) -> dict[str, str]:
    sm, memory = nvml.library.NVML_CLOCK_SM, nvml.library.NVML_CLOCK_MEM
    mig, limit = nvml.read("MigMode"), nvml.read("EnforcedPowerLimit")
    return {
        "driver": _text(nvml.driver),
        "mig": "" if mig is None else ("on" if mig[0] else "off"),
        "gpu_power_limit": "" if limit is None else f"{limit / 1e3:.0f} W",
        "gpu_clocks": " ".join(
            f"{name} {now} of {most} MHz"
            for name, now, most in (
                ("SM", nvml.read("ClockInfo", sm), nvml.read("MaxClockInfo", sm)),
                ("memory", nvml.read("ClockInfo", memory), nvml.read("MaxClockInfo", memory)),
            )
            if now is not None
        ),
        "gpu_temperature": _text(nvml.read("Temperature", nvml.library.NVML_TEMPERATURE_GPU), " °C"),
        "gpu_slowed_by": ", ".join(nvml.slowed_by) or "nothing",
        "gpu_other_processes": _text(nvml.other_processes),
    }


def _text(value: Any, unit: str = "") -> str:
    return "" if value is None else f"{value}{unit}"


def _precision(operation: str) -> str:
    """In what torch computes an fp32 product (`matmul`) or convolution (`conv`): ieee or tf32."""
    place = torch.backends.cuda.matmul if operation == "matmul" else torch.backends.cudnn
    if hasattr(torch.backends, "fp32_precision"):
        place = place if operation == "matmul" else place.conv
        return "tf32" if place.fp32_precision == "tf32" else "ieee"
    return "tf32" if place.allow_tf32 else "ieee"


# ---------------------------------------------------------------------------------------------- during a run


class GpuWatch:
    """The card since this object was created, looked at by `look` at most twice a second."""

    def __init__(self, device: str) -> None:
        self.nvml = Nvml.open(device)
        self.slowed_by: dict[str, None] = {}
        self.clocks: list[int] = []
        self.temperatures: list[int] = []
        self.looked = -LOOK_EVERY_S
        self.began, self.began_mj = time.perf_counter(), self._millijoules()

    def _millijoules(self) -> int | None:
        return self.nvml.read("TotalEnergyConsumption") if self.nvml else None

    def look(self) -> None:
        """Note clock, temperature and what holds the clock down."""
        if self.nvml is None or time.perf_counter() - self.looked < LOOK_EVERY_S:
            return
        self.looked = time.perf_counter()
        self.slowed_by |= dict.fromkeys(self.nvml.slowed_by)
        self.clocks += _known(self.nvml.read("ClockInfo", self.nvml.library.NVML_CLOCK_SM))
        self.temperatures += _known(self.nvml.read("Temperature", self.nvml.library.NVML_TEMPERATURE_GPU))

    def read(self, calls: int) -> GpuUse | None:
        """What was seen during so many calls; None without NVML."""
        if self.nvml is None:
            return None
        self.look()
        now_mj, seconds = self._millijoules(), time.perf_counter() - self.began
        joules = None if now_mj is None or self.began_mj is None else (now_mj - self.began_mj) / 1e3
        return GpuUse(
            sm_mhz=min(self.clocks, default=None),
            temperature_c=max(self.temperatures, default=None),
            slowed_by=tuple(self.slowed_by),
            other_processes=self.nvml.other_processes,
            power_w=joules / seconds if joules else None,
            joules_per_call=joules / calls if joules else None,
        )


def _known(value: int | None) -> list[int]:
    return [] if value is None else [value]


def peak_bytes(call: Callable[[], Any], device: str, held_bytes: int) -> int:
    """The most that a call has allocated at a time on `device`, with the `held_bytes` that it finds there."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before + held_bytes
