"""The device that torch works on: events, streams and allocations are of its current one unless told otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asdm.records.measurement import device_kind


def is_gpu(device: str) -> bool:
    """Whether it is timed by CUDA events: a GPU of NVIDIA's, or of AMD's through ROCm."""
    return device_kind(device) == "cuda"


def available_kinds() -> tuple[str, ...]:
    """The kinds of device of this machine: cpu, and its accelerator's if it has one."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("cpu", accelerator.type) if accelerator else ("cpu",)


@contextmanager
def meta_device() -> Iterator[None]:
    """Modules made within it have shapes without memory, and no initial values, which would take most of the time."""
    import torch
    from diffusers.models.modeling_utils import no_init_weights

    with torch.device("meta"), no_init_weights():
        yield


def use_device(device: str) -> None:
    """Make a GPU named by its number, such as `cuda:1`, torch's current one for the rest of this process.

    A number that does not exist is left to the command, which says what there is.
    """
    number = device.partition(":")[2]
    if not is_gpu(device) or not number.isdigit():
        return
    import torch

    if int(number) < torch.cuda.device_count():
        torch.cuda.set_device(int(number))


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """A GPU as torch's current device that computes fp32 in full, for the length of a `with`."""
    if not is_gpu(device):
        yield
        return
    import torch

    with torch.cuda.device(device), _full_fp32():
        yield


@contextmanager
def _full_fp32() -> Iterator[None]:
    """No TF32: torch's default, TF32 in convolutions and not in products, distorts the shares of units in fp32."""
    import torch

    product: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    name: str = "allow_tf32"
    full: Any = False
    if hasattr(torch.backends, "fp32_precision"):  # from torch 2.9 on; both ways in one process are an error
        convolution, name, full = convolution.conv, "fp32_precision", "ieee"
    before = [(place, getattr(place, name)) for place in (product, convolution)]
    try:
        for place, _ in before:
            setattr(place, name, full)
        yield
    finally:
        for place, value in before:
            setattr(place, name, value)
