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
from asdm.unet import flops

T = TypeVar("T")


def require(
    shapes: nn.Module, family: Family, students: Sequence[ComparedUNet], settings: BenchSettings, backend: Any
) -> None:
    """Raises ValueError unless the comparison fits into free memory.

    Counted are the teacher, students loaded from disk, the copies that a runtime's sessions make, and on top of them
    the largest of what comes one after the other: a call at the guided batch, a text encoder, the VAE decoder, and
    with quality the drawing of some pictures at once.
    """
    if not backend.NEEDS_WEIGHTS:
        return
    batch = settings.batch * (2 if settings.guided else 1)
    inputs = example_inputs.unet_inputs(family, batch, settings.size, "meta", settings.dtype)
    counted = flops.count(shapes, (), inputs)
    from_disk = sum(
        student.is_folder or bool(student.resolved and graft.stage1_of(student.resolved.plan)) for student in students
    )
    session = backends.session_bytes(backend, counted.parameter_bytes, counted.peak_memory_bytes)
    activations = counted.peak_activation_bytes
    at_once = max(activations, _beside(family, settings, activations / settings.batch))
    in_torch = (1 + from_disk) * counted.parameter_bytes + at_once
    need = int(1.1 * in_torch + (1 + len(students)) * session) + machine.SPARE_BYTES
    many = f" with {len(students)} students at a time" if session and len(students) > 1 else ""
    machine.require_memory(need, settings.device, f"comparing {family.name} in {settings.dtype}{many}")


def _beside(family: Family, settings: BenchSettings, activations_each: float) -> int:
    """The most bytes besides UNets and sessions of what is not a UNet's call; `activations_each` are of one picture's.

    Components are timed one after the other; whole pictures keep all their weights, and several are drawn at once.
    """
    scale = dtype_of(settings.dtype).itemsize / 4  # of what is counted in fp32
    counts = {part.name: count_call(part) for part in components_of(family, settings.size, settings.guided)}
    at_once = [scale * count.peak_memory_bytes for count in counts.values()]
    pictures = min(DRAWN_AT_ONCE, settings.pictures) if settings.quality else int(settings.run_image)
    if pictures and "vae_decoder" in counts:
        weights = scale * sum(count.parameter_bytes for count in counts.values())
        decoding = scale * counts["vae_decoder"].peak_activation_bytes
        at_once.append(weights + pictures * max(activations_each, decoding))
    return int(max(at_once, default=0))


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
