"""Backends, the runtimes that a UNet can be measured in. One file each.

A file defines the constants

- `NEEDS_WEIGHTS`: False if a UNet on the meta device is enough,
- `WEIGHT_COPIES`: how many copies of the weights a session holds besides torch's,
- `ACTIVATION_COPIES`: how many times the peak activations of a forward it keeps allocated between two calls,
- `HOOKED`: True if part times come from hooks inside the measured forward itself,
- `DTYPES` and `DEVICES`: the dtypes and devices that it supports (`cuda` includes `cuda:1`; empty: all), and
  `DTYPES_ON_A_CPU` where those are fewer,

and `open_session(unet, inputs, parts, clock) -> Session`, which runs in the UNet's own dtype.

It may also define `MODES`, each typed behind its name (`compiled:reduce-overhead`) and given to `open_session` as
`mode`, and `check(dtype, device)`, which raises ValueError where this machine lacks something else that it needs.
"""

import os
import sys
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

from asdm.measure.device import available_kinds, is_gpu
from asdm.records.measurement import device_kind
from asdm.utils import registry

# Both runtimes send events and write device ids into the home folder, unless they are told not to before their import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it fails, and none is used


@dataclass
class Attribution:
    """How part times were derived if they are not taken inside a plain forward; one entry per call of `run_parts`."""

    mapped: list[float] = field(default_factory=list)  # share of the runtime's own node time that lies in a part
    slowdown: list[float] = field(default_factory=list)  # seconds of the observed call / of the bare one beside it


class Session(Protocol):
    """A module ready to be called with fixed inputs."""

    attribution: Attribution | None  # None if part times are taken inside the forward, or computed

    def run(self) -> float:
        """Seconds of one bare call."""
        ...

    def run_parts(self) -> tuple[float, dict[str, float]]:
        """Seconds of one call, and of each of its parts by fqn; parts + the rest = the whole."""
        ...

    def output(self) -> Any:
        """The output as a torch tensor; None if nothing is computed."""
        ...


def load(name: str, dtype: str, device: str) -> Any:
    """The backend's module, or what stands for it in a mode, such as `compiled:reduce-overhead`.

    Raises ValueError for an unknown name or mode, a missing extra, an unsupported dtype or device, and whatever else
    the machine lacks.
    """
    file, _, mode = name.partition(":")
    backend = registry.load(__name__, file)
    dtypes = backend.DTYPES if is_gpu(device) else getattr(backend, "DTYPES_ON_A_CPU", backend.DTYPES)
    if backend.DEVICES and device_kind(device) not in backend.DEVICES:
        devices = ", ".join(backend.DEVICES)
        if not {*backend.DEVICES} & {*available_kinds()}:
            has = ", ".join(available_kinds())
            raise ValueError(
                f"{name} needs a {devices} device, and this machine has only {has}; choose another backend."
            )
        raise ValueError(f"{name} does not support the device {device} here; choose from {devices}.")
    if dtype not in dtypes:
        raise ValueError(f"{name} does not support the dtype {dtype} here; choose from {', '.join(dtypes)}.")
    if hasattr(backend, "check"):
        backend.check(dtype, device)
    return _in_mode(backend, file, mode, device) if mode else backend


def _in_mode(backend: Any, file: str, mode: str, device: str) -> Any:
    """The backend's constants, and its sessions in a mode."""
    modes = getattr(backend, "MODES", ())
    if mode not in modes:
        choices = ", ".join([file, *(f"{file}:{name}" for name in modes)])
        raise ValueError(f"unknown mode {mode!r} of {file}; choose from {choices}.")
    if hasattr(backend, "check_mode"):
        backend.check_mode(mode, device)
    return SimpleNamespace(**vars(backend) | {"open_session": partial(backend.open_session, mode=mode)})


def session_bytes(backend: Any, parameter_bytes: int, peak_memory_bytes: int) -> int:
    """Bytes that a session takes besides torch's; `peak_memory_bytes` of the forward include the weights."""
    activations = peak_memory_bytes - parameter_bytes
    return int(backend.WEIGHT_COPIES * parameter_bytes + backend.ACTIVATION_COPIES * activations)
