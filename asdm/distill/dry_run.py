"""A stage before it runs, from shapes alone: what would learn, from which terms, and in how much memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from asdm.distill import losses, task
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.stages import Course, Recipe, Stage, chosen_stages, plan_course, small_student, terms_of
from asdm.distill.task import PERCEPTUAL, Lesson, Subject
from asdm.models import example_inputs, graft
from asdm.models.families import Family
from asdm.records.distill import MemoryEstimate, StagePlan
from asdm.unet import hooks
from asdm.unet.surgery import Applied


def preview(
    source: str, teacher: str, settings: DistillSettings, recipe: Recipe, only: str | None = None
) -> tuple[StagePlan, ...]:
    """What a run would do, stage by stage, from shapes alone: nothing is loaded, trained or written."""
    course = plan_course(source, teacher, settings, recipe)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return tuple(described(course, stage, settings, world) for stage in chosen_stages(course.stages, only))


def described(course: Course, stage: Stage, settings: DistillSettings, world: int = 1) -> StagePlan:
    """A stage before it runs, from shapes alone."""
    student, applied = small_student(course, stage)
    inputs = example_inputs.unet_inputs(course.family, batch=1, size=settings.size, device="meta")
    found = hooks.comparable(student, course.shapes, hooks.places(student, applied.name_map), inputs)
    weights, left_out = terms_of(stage, student, found)
    return StagePlan(
        name=stage.name,
        mode=stage.mode,
        steps=stage.steps,
        weights=weights,
        places={name: len(found[name]) for name in weights if name in losses.PLACED},
        left_out=left_out,
        audit=graft.audit(student, course.shapes),
        memory=memory_estimate(course, stage, student, applied, tuple(weights), found, settings, world),
    )


def memory_estimate(
    course: Course,
    stage: Stage,
    student: Any,
    applied: Applied,
    terms: tuple[str, ...],
    places: Mapping[str, Any],
    settings: DistillSettings,
    world: int,
) -> MemoryEstimate:
    """Bytes on one device, counted on the meta device; the VGG and kernels' own space are left out."""
    storages = {p.untyped_storage()._cdata: p.nbytes for m in (student, course.shapes) for p in m.parameters()}
    learning = sum(p.nbytes for p in student.parameters() if p.requires_grad)
    micro = micro_batch(settings, world)
    subject = Subject(
        tuple(t for t in terms if t != PERCEPTUAL), places, "epsilon", stage.mode, stage.normalise, None, None
    )
    inputs = example_inputs.unet_inputs(course.family, batch=micro, size=settings.size, device="meta")
    noisy = inputs["sample"]
    args = (noisy, inputs["timestep"], inputs["encoder_hidden_states"], torch.empty_like(noisy))
    meta_lesson = Lesson(student, course.shapes, applied, subject)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    activations = task.saved_bytes(lambda: meta_lesson(*args, noisy.new_empty(micro)), student)
    moments = 0.25 if settings.optimizer == "adamw8bit" else 1.0
    return MemoryEstimate(
        weights=sum(storages.values()),
        encoders=encoder_bytes(course.family),
        gradients=learning,
        optimizer=int(2 * learning * moments),
        average=learning if settings.ema else 0,
        activations=activations if settings.dtype == "fp32" else activations // 2,
    )


def encoder_bytes(family: Family) -> int:
    """Bytes of the frozen text encoder and VAE, in fp32."""
    from diffusers import AutoencoderKL

    from asdm.models.components import components_of

    with torch.device("meta"):
        parts = [part.module for part in components_of(family) if part.name.startswith("text_encoder")]
        parts += [AutoencoderKL.from_config(family.vae)] if family.vae else []
    return sum(p.nbytes for part in parts for p in part.parameters())
