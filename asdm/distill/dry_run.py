"""The dry run: what a stage would train, with which terms, and in how much memory, from shapes alone."""

from __future__ import annotations

import os

from asdm.distill import losses
from asdm.distill.memory import estimate_memory
from asdm.distill.settings import DistillSettings
from asdm.distill.stages import Recipe, ResolvedRecipe, Stage, active_terms, meta_student, resolve_recipe, select_stages
from asdm.models import example_inputs, graft
from asdm.records.distill import StagePlan
from asdm.unet import hooks


def preview(
    source: str, teacher: str | None, settings: DistillSettings, recipe: Recipe, only: str | None = None
) -> tuple[StagePlan, ...]:
    """What a run would do, stage by stage; nothing is loaded, trained or written."""
    resolved = resolve_recipe(source, teacher, settings, recipe)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return tuple(preview_stage(resolved, stage, settings, world) for stage in select_stages(resolved.stages, only))


def preview_stage(recipe: ResolvedRecipe, stage: Stage, settings: DistillSettings, world: int = 1) -> StagePlan:
    """A stage before it runs."""
    student, applied = meta_student(recipe, stage)
    inputs = example_inputs.unet_inputs(recipe.family, batch=1, size=settings.size, device="meta")
    places = losses.find_places(stage.weights, student, applied.name_map)
    places = hooks.comparable(student, recipe.meta_teacher, places, inputs)
    weights, left_out = active_terms(stage, student, places)
    return StagePlan(
        name=stage.name,
        mode=stage.mode,
        steps=stage.steps,
        weights=weights,
        places={name: len(places[name]) for name in weights if name in places},
        left_out=left_out,
        audit=graft.audit(student, recipe.meta_teacher),
        memory=estimate_memory(recipe, stage, student, applied, tuple(weights), places, settings, world),
    )
