"""Backends: what runs a UNet. One file each.

A file defines the constants

- `NEEDS_WEIGHTS`: False where shapes on the meta device are enough,
- `WEIGHT_COPIES`: how many copies of the weights a session holds beside torch's,
- `ACTIVATION_COPIES`: how many times the largest activations of a forward it keeps to itself between two calls,
- `HOOKED`: True where part times come from hooks inside the very forward that is measured,
- `DTYPES` and `DEVICES`: what it runs in and on, by torch's names (`cuda` stands for `cuda:1` too),

and `open_session(unet, inputs, parts, clock) -> Session`. The UNet's own dtype is the one it runs in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from asdm.utils import registry


@dataclass
class Attribution:
    """How times that are not marks inside a plain forward became part times: one entry per call of `run_parts`."""

    mapped: list[float] = field(default_factory=list)  # share of the runtime's own node time that lies in a part
    slowdown: list[float] = field(default_factory=list)  # seconds of the observed call / of the bare one beside it


class Session(Protocol):
    """A module that is ready to be called with fixed inputs."""

    attribution: Attribution | None  # None where part times are marks inside the forward, or arithmetic

    def run(self) -> float:
        """Seconds of one bare call."""
        ...

    def run_parts(self) -> tuple[float, dict[str, float]]:
        """Seconds of one call and of each of its parts by fqn, in the same measure: parts + the rest = the whole."""
        ...

    def output(self) -> Any:
        """What the call returns, as a torch tensor; None where nothing is computed."""
        ...


def load(name: str, dtype: str, device: str) -> Any:
    """The backend's file; raises ValueError for an unknown name, a missing extra, or a dtype or device it lacks."""
    backend = registry.load(__name__, name)
    for what, wanted, choices in (("dtype", dtype, backend.DTYPES), ("device", device, backend.DEVICES)):
        if choices and wanted.partition(":")[0] not in choices:
            raise ValueError(f"{name} has no {what} {wanted} here; choose from {', '.join(choices)}.")
    return backend


def session_bytes(backend: Any, parameter_bytes: int, peak_memory_bytes: int) -> int:
    """Bytes that a session takes beside torch's, of a forward that peaks at `peak_memory_bytes`, weights included."""
    activations = peak_memory_bytes - parameter_bytes
    return int(backend.WEIGHT_COPIES * parameter_bytes + backend.ACTIVATION_COPIES * activations)
