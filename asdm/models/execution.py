"""What a measurement runs on: weights, device, dtype, threads, seed, batch and size, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from asdm.measure.device import available_kinds, is_gpu
from asdm.models.settings import DTYPES, Setup
from asdm.utils.settings import check_bounds, from_keywords, options

S = TypeVar("S")
RANDOM = "random"
SHIPPED = "shipped"
ON_A_GPU = {"dtype": "fp16", "batch": 2}  # where a command works them out: what is deployed, in a guided step


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype by its short name; raises ValueError that lists the choices."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    if dtype is None:
        raise ValueError(f"unknown dtype {name!r}; choose from {', '.join(DTYPES)}.")
    return dtype


def resolve(settings: type[S], given: Mapping[str, Any]) -> S:
    """Settings from what a user gave, and where a setting is automatic, what suits the machine.

    That is the accelerator if there is one, and on a GPU what `ON_A_GPU` says. Raises ValueError for an unknown name or
    a value out of bounds.
    """
    values = dict(given)
    left_out = [name for name, option in options(settings).items() if option.automatic and values.get(name) is None]
    if "device" in left_out:
        values["device"] = default_device()
    for name in left_out:
        if name in ON_A_GPU:
            values[name] = ON_A_GPU[name] if is_gpu(str(values.get("device"))) else getattr(settings, name)
    chosen = from_keywords(settings, values)
    check_bounds(chosen)
    return chosen


def chosen_on_a_gpu(settings: Any, given: Mapping[str, Any], command: str = "") -> str | None:
    """One sentence on what a user left out and a GPU was chosen for; None on a CPU and where all was given.

    `command`: " of asdm-prof profile" where the command at hand does not have these options.
    """
    automatic = [name for name, option in options(type(settings)).items() if option.automatic]
    names = [name for name in automatic if name in ON_A_GPU and given.get(name) is None]
    if not names or not is_gpu(settings.device):
        return None
    values = ", ".join(f"{name} {getattr(settings, name)}" for name in names)
    flags = " and ".join(f"--{name}" for name in names)
    return f"Chosen for this GPU: {values}; {flags}{command} would choose otherwise."


def check_setup(setup: Setup) -> None:
    """Raises ValueError for a setting out of its bounds, and for a device that is not available."""
    check_bounds(setup)
    check_device(setup.device)


def check_device(device: str) -> None:
    """Raises ValueError naming the available devices where `device` is not one of them."""
    choices, kind = ["cpu"], default_device()
    if kind != "cpu":
        choices += [kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
    if device not in choices:
        raise ValueError(f"device {device!r} is not available; choose from {', '.join(choices)}.")


def slow_dtype(device: str, dtype: str) -> str | None:
    """A warning where this CPU lacks instructions for a dtype that torch convolves in; None otherwise."""
    has = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", None)
    if device != "cpu" or dtype not in ("bf16", "fp16") or has is None or has():
        return None
    return (
        f"this CPU has no instructions for {dtype}, without which torch convolves hundreds of times slower than in "
        "fp32; choose --dtype fp32."
    )


def smaller_dtype(dtype: str) -> str | None:
    """The option that halves the memory of weights, where they are not halved already."""
    return "--dtype fp16" if dtype == "fp32" else None


def default_device() -> str:
    """The accelerator if there is one, otherwise the CPU."""
    return available_kinds()[-1]
