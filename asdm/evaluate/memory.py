"""Memory of a comparison: what it will need, what its UNets took, and stages that may run out of it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.generation import DRAWN_AT_ONCE
from asdm.evaluate.settings import BenchSettings
from asdm.measure import backends, machine
from asdm.measure.device import is_gpu
from asdm.models import example_inputs, graft
from asdm.models.components import components_of, count_call
from asdm.models.execution import dtype_of
from asdm.models.families import Family
from asdm.models.vae import needs_fp32
from asdm.unet import flops

T = TypeVar("T")


def require(
    shapes: nn.Module, family: Family, students: Sequence[ComparedUNet], settings: BenchSettings, backend: Any
) -> int:
    """How many pictures may be drawn at once; raises ValueError unless the comparison fits into free memory.

    Counted are the teacher, students loaded from disk, the copies that a runtime's sessions make, and on top of them
    the largest of what comes one after the other: a call at the guided batch, a text encoder, the VAE decoder, and
    with quality the drawing of pictures.
    """
    if not backend.NEEDS_WEIGHTS:
        return DRAWN_AT_ONCE
    batch = settings.batch * (2 if settings.guided else 1)
    inputs = example_inputs.unet_inputs(family, batch, settings.size, "meta", settings.dtype)
    counted = flops.count(shapes, (), inputs)
    from_disk = sum(
        student.is_folder or bool(student.resolved and graft.stage1_of(student.resolved.plan)) for student in students
    )
    session = backends.session_bytes(backend, counted.parameter_bytes, counted.peak_memory_bytes)
    activations = counted.peak_activation_bytes
    beside = _beside(family, settings, activations / settings.batch)

    def needed(pictures: int) -> int:
        in_torch = (1 + from_disk) * counted.parameter_bytes + max(activations, beside(pictures))
        return int(1.1 * in_torch + (1 + len(students)) * session) + machine.SPARE_BYTES

    free, pictures = machine.free_memory_bytes(settings.device), DRAWN_AT_ONCE
    while settings.quality and pictures > 1 and needed(pictures) > free:
        pictures //= 2
    many = f" with {len(students)} students at a time" if session and len(students) > 1 else ""
    what = f"comparing {family.name} in {settings.dtype}{many}"
    machine.require_memory(needed(pictures if settings.quality else 1), settings.device, what)
    return pictures


def _beside(family: Family, settings: BenchSettings, activations_each: float) -> Callable[[int], int]:
    """The most bytes besides UNets and sessions of what is not a UNet's call, by how many pictures are drawn at once.

    `activations_each` are of one picture's call. Components are timed one after the other; whole pictures keep all
    their weights.
    """
    scale = dtype_of(settings.dtype).itemsize / 4  # of what is counted in fp32
    counts = {part.name: count_call(part) for part in components_of(family, settings.size, settings.guided)}
    at_once = [scale * count.peak_memory_bytes for count in counts.values()]
    weights = scale * sum(count.parameter_bytes for count in counts.values())
    draws = (settings.quality or settings.run_image) and "vae_decoder" in counts
    in_fp32 = needs_fp32(family.vae or {}, dtype_of(settings.dtype))
    decoding = (1 if in_fp32 else scale) * counts["vae_decoder"].peak_activation_bytes if draws else 0.0

    def most(pictures: int) -> int:
        drawing = weights + min(pictures, settings.pictures) * max(activations_each, decoding)
        return int(max([*at_once, *([drawing] if draws else [])], default=0))

    return most


def measured_peaks(
    everyone: Sequence[ComparedUNet], family: Family, settings: BenchSettings, backend: Any
) -> list[int | None]:
    """The most bytes that an eager call of each UNet allocates on a GPU, weights included; None elsewhere."""
    if not is_gpu(settings.device) or not backend.NEEDS_WEIGHTS:
        return [None] * len(everyone)
    from asdm.measure import gpu

    where = (settings.device, settings.dtype, settings.seed)
    inputs = example_inputs.unet_inputs(family, settings.batch, settings.size, *where)

    def peak(unet: nn.Module) -> int:
        held = sum(p.numel() * p.element_size() for p in unet.parameters())
        return gpu.peak_bytes(lambda: unet(**inputs), settings.device, held)

    return [peak(compared.unet) for compared in everyone]


def unless_full(what: str, stage: Callable[[], T], lost: dict[str, str], otherwise: T) -> T:
    """What a stage gives; where memory runs out in it, `otherwise`, and `lost` gets the error under its name."""
    try:
        return stage()
    except (RuntimeError, MemoryError) as error:  # torch's own error is a RuntimeError, on a CPU a bare one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        lost[what] = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return otherwise
