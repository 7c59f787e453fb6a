"""A stage before it runs, from shapes alone: what would learn, from which terms, and in how much memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from asdm.distill import losses, task
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.stages import Recipe, ResolvedRecipe, Stage, active_terms, meta_student, resolve_recipe, select_stages
from asdm.distill.task import PERCEPTUAL, DistillationTask, Objective
from asdm.models import example_inputs, graft
from asdm.models.families import Family
from asdm.records.distill import MemoryEstimate, StagePlan
from asdm.unet import hooks
from asdm.unet.surgery import Applied


def preview(
    source: str, teacher: str, settings: DistillSettings, recipe: Recipe, only: str | None = None
) -> tuple[StagePlan, ...]:
    """What a run would do, stage by stage, from shapes alone: nothing is loaded, trained or written."""
    resolved = resolve_recipe(source, teacher, settings, recipe)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return tuple(preview_stage(resolved, stage, settings, world) for stage in select_stages(resolved.stages, only))


def preview_stage(recipe: ResolvedRecipe, stage: Stage, settings: DistillSettings, world: int = 1) -> StagePlan:
    """A stage before it runs, from shapes alone."""
    student, applied = meta_student(recipe, stage)
    inputs = example_inputs.unet_inputs(recipe.family, batch=1, size=settings.size, device="meta")
    found = hooks.comparable(student, recipe.shapes, hooks.places(student, applied.name_map), inputs)
    weights, left_out = active_terms(stage, student, found)
    return StagePlan(
        name=stage.name,
        mode=stage.mode,
        steps=stage.steps,
        weights=weights,
        places={name: len(found[name]) for name in weights if name in losses.PLACED},
        left_out=left_out,
        audit=graft.audit(student, recipe.shapes),
        memory=estimate_memory(recipe, stage, student, applied, tuple(weights), found, settings, world),
    )


def estimate_memory(
    recipe: ResolvedRecipe,
    stage: Stage,
    student: Any,
    applied: Applied,
    terms: tuple[str, ...],
    places: Mapping[str, Any],
    settings: DistillSettings,
    world: int,
) -> MemoryEstimate:
    """Bytes on one device, counted on the meta device; the VGG and kernels' own space are left out."""
    storages = {p.untyped_storage()._cdata: p.nbytes for m in (student, recipe.shapes) for p in m.parameters()}
    learning = sum(p.nbytes for p in student.parameters() if p.requires_grad)
    micro = micro_batch(settings, world)
    objective = Objective(
        tuple(t for t in terms if t != PERCEPTUAL), places, "epsilon", stage.mode, stage.normalise, None, None
    )
    inputs = example_inputs.unet_inputs(recipe.family, batch=micro, size=settings.size, device="meta")
    noisy = inputs["sample"]
    args = (noisy, inputs["timestep"], inputs["encoder_hidden_states"], torch.empty_like(noisy))
    meta_task = DistillationTask(student, recipe.shapes, applied, objective)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    activations = task.saved_bytes(lambda: meta_task(*args, noisy.new_empty(micro)), student)
    moments = 0.25 if settings.optimizer == "adamw8bit" else 1.0
    return MemoryEstimate(
        weights=sum(storages.values()),
        encoders=encoder_bytes(recipe.family),
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
