"""Memory that a comparison needs, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.settings import BenchSettings
from asdm.measure import backends, machine
from asdm.models import example_inputs, graft
from asdm.models.families import Family
from asdm.unet import flops


def require_memory(
    shapes: nn.Module, family: Family, students: Sequence[ComparedUNet], settings: BenchSettings, backend: Any
) -> None:
    """Raises ValueError unless the comparison fits into free memory.

    Counted are the teacher, the peak of its activations at the guided batch, students loaded from disk, and the copies
    that a runtime's sessions make.
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
    in_torch = counted.peak_memory_bytes + from_disk * counted.parameter_bytes
    need = int(1.1 * in_torch + (1 + len(students)) * session) + machine.SPARE_BYTES
    many = f" with {len(students)} students at a time" if session and len(students) > 1 else ""
    machine.require_memory(need, settings.device, f"comparing {family.name} in {settings.dtype}{many}")
