"""The dry run: what a stage would train, with which terms, and in how much memory, from shapes alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from asdm.distill import losses
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.stages import Recipe, ResolvedRecipe, Stage, active_terms, meta_student, resolve_recipe, select_stages
from asdm.distill.task import DistillationTask, Objective
from asdm.models import example_inputs, graft
from asdm.models.families import Family
from asdm.records.distill import MemoryEstimate, StagePlan
from asdm.unet import hooks
from asdm.unet.surgery import Applied


def preview(
    source: str, teacher: str, settings: DistillSettings, recipe: Recipe, only: str | None = None
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
    """Bytes on one device, counted on the meta device, without terms' networks and kernels' workspaces."""
    storages = {p.untyped_storage()._cdata: p.nbytes for m in (student, recipe.meta_teacher) for p in m.parameters()}
    learning = sum(p.nbytes for p in student.parameters() if p.requires_grad)
    micro = micro_batch(settings, world)
    terms = tuple(name for name in terms if not losses.needs_network(name))
    objective = Objective(terms, places, "epsilon", stage.mode, stage.normalise)
    inputs = example_inputs.unet_inputs(recipe.family, batch=micro, size=settings.size, device="meta")
    noisy = inputs["sample"]
    args = (noisy, inputs["timestep"], inputs["encoder_hidden_states"], torch.empty_like(noisy))
    meta_task = DistillationTask(student, recipe.meta_teacher, applied, objective)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    activations = saved_bytes(lambda: meta_task(*args, noisy.new_empty(micro)), student)
    moments = 0.25 if settings.optimizer == "adamw8bit" else 1.0
    return MemoryEstimate(
        weights=sum(storages.values()),
        encoders=encoder_bytes(recipe.family),
        gradients=learning,
        optimizer=int(2 * learning * moments),
        average=learning if settings.ema else 0,
        activations=activations if settings.dtype == "fp32" else activations // 2,
    )


def saved_bytes(call: Callable[[], Any], module: nn.Module) -> int:
    """Bytes that `call` saves for its backward, besides `module`'s own tensors; works on the meta device."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total


def encoder_bytes(family: Family) -> int:
    """Bytes of the frozen text encoder and VAE, in fp32."""
    from diffusers import AutoencoderKL

    from asdm.models.components import components_of

    with torch.device("meta"):
        parts = [part.module for part in components_of(family) if part.name.startswith("text_encoder")]
        parts += [AutoencoderKL.from_config(family.vae)] if family.vae else []
    return sum(p.nbytes for part in parts for p in part.parameters())
