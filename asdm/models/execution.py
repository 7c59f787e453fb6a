"""What a measurement runs on: weights, device, dtype, threads, seed, batch and size, checked."""

from __future__ import annotations

import torch

from asdm.models.settings import Setup

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM = "random"
SHIPPED = "shipped"


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype by its short name; raises ValueError that lists the choices."""
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; choose from {', '.join(DTYPES)}.")
    return DTYPES[name]


def check_setup(setup: Setup) -> None:
    """Raises ValueError for a batch, thread count, dtype or device that cannot be."""
    dtype_of(setup.dtype)
    check_device(setup.device)
    for name in ("batch", "threads"):
        value = getattr(setup, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} {value} is none; choose 1 or more.")


def check_device(device: str) -> None:
    """Raises ValueError that lists what there is, for a device that this machine does not have."""
    choices, kind = ["cpu"], default_device()
    if kind != "cpu":
        choices += [kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
    if device not in choices:
        raise ValueError(f"no device {device!r} here; choose from {', '.join(choices)}.")


def slow_dtype(device: str, dtype: str) -> str | None:
    """A warning where torch convolves in a dtype that this CPU has no instructions for; None elsewhere."""
    has = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", None)
    if device != "cpu" or dtype not in ("bf16", "fp16") or has is None or has():
        return None
    return (
        f"this CPU has no instructions for {dtype}, without which torch convolves hundreds of times slower than in "
        "fp32; choose --dtype fp32."
    )


def default_device() -> str:
    """The accelerator where there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"
