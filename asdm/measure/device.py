"""The device that torch works on: events, streams and allocations are of its current one unless told otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

from asdm.records.measurement import device_kind


def is_gpu(device: str) -> bool:
    """Whether it is timed by CUDA events: a GPU of NVIDIA's, or of AMD's through ROCm."""
    return device_kind(device) == "cuda"


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
    """A GPU as torch's current device, for the length of a `with`."""
    if not is_gpu(device):
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield
