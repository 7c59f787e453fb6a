"""Recipes: functions `(topology, plan, steps) -> tuple[Stage, ...]` that split a plan's training into stages.

`steps` is the total of all stages. `adjust` applies the command line's options to any recipe.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asdm.distill import losses
from asdm.distill.losses import MODES
from asdm.distill.stages import TEACHER, Recipe, Stage
from asdm.models.graft import with_grafts
from asdm.plan.edits import AnyEdit, PruningPlan, RemoveLayer, ReplaceUnit
from asdm.plan.legality import resolve
from asdm.plan.topology import Topology

BK_SDM = {"denoising": 1.0, "output": 1.0, "features": 1.0}
SAS = {"denoising": 1.0, "output": 1.0, "mid_block": 1.0, "perceptual": 0.1}
BLOCKWISE = {"denoising": 1.0, "output": 1.0, "blocks": 1.0}


def progressive_incubation(topology: Topology, plan: PruningPlan, steps: int) -> tuple[Stage, ...]:
    """The paper's two stages (§2.2), with half of the steps each.

    1. `compressed`: every block loses a layer (the plan's blocks lose what the plan removes); all of it is trained
       with BK-SDM's losses.
    2. `combined`: the plan's student, with its shallow blocks grafted from stage 1 onto the frozen teacher and with the
       plan's CLME and GRI; trained with semantic-aware supervision (§2.5).

    The paper gives no weights. We normalise features by the teacher's, so that every term is a relative error, and
    weight each term by 1, except 0.1 for the perceptual term, whose x̂₀ passes a linear map and a small VGG.
    """
    if steps < 2:
        raise ValueError(f"--steps must be at least 2 for two stages, got {steps}.")
    combined = with_grafts(resolve(topology, plan)).plan
    return (
        Stage("compressed", compressed_plan(topology, plan), steps // 2, BK_SDM),
        Stage("combined", combined, steps - steps // 2, SAS, grafts_from="compressed"),
    )


def without_incubation(topology: Topology, plan: PruningPlan, steps: int) -> tuple[Stage, ...]:
    """Stage 2 alone, for all steps: the combined UNet with the teacher's own shallow blocks, pruned by the plan."""
    return (Stage("combined", with_grafts(resolve(topology, plan)).plan, steps, SAS, grafts_from=TEACHER),)


def bk_sdm(topology: Topology, plan: PruningPlan, steps: int) -> tuple[Stage, ...]:
    """BK-SDM's single stage: all of the student is trained with denoising + output + Σ features, not normalised."""
    return (Stage("distilled", plan, steps, BK_SDM, normalise=False),)


RECIPES: dict[str, Recipe] = {f.__name__: f for f in (progressive_incubation, without_incubation, bk_sdm)}


def load(name: str) -> Recipe:
    """A recipe by name, or a user's `FILE.py:FUNCTION`; raises ValueError with the choices."""
    if name in RECIPES:
        return RECIPES[name]
    path, _, function = name.partition(":")
    if not (path.endswith(".py") and function):
        raise ValueError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}, or name FILE.py:FUNCTION.")
    if not Path(path).is_file():
        raise ValueError(f"the recipe's file {path} does not exist.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{path} has no function {function!r}.")
    return getattr(module, function)


def terms_of(name: str, topology: Topology, steps: int) -> set[str]:
    """The loss terms to which a recipe gives weight; none of a user's recipe that needs a plan with edits to say so."""
    try:
        stages = load(name)(topology, PruningPlan(family="", edits=()), steps)
    except (ValueError, IndexError):
        return set()
    return {term for stage in stages for term, weight in stage.weights.items() if weight}


def compressed_plan(topology: Topology, plan: PruningPlan) -> PruningPlan:
    """The stage-1 plan of a plan: the plan's removals in the blocks it edits, and one layer of every other block pair.

    In the plan's blocks it removes exactly what the plan removes, so that the trained blocks can be grafted.
    """
    kept = resolve(topology, plan.edits)
    touched = {block for block, _ in kept.removed_layers} | kept.removed_blocks | set(kept.grafted)
    touched |= {topology.unit(fqn).block for fqn in (*kept.removed_units, *kept.replaced)}
    edits: list[AnyEdit] = [edit for edit in plan.edits if _removes_weights(edit)]
    for down in topology.down_blocks:
        up = topology.mirror(down)
        if not {down, up} & touched and len(topology.layers(down)) > 1:
            edits.append(RemoveLayer(block=down, layer=topology.layers(down)[-1]))
            edits.append(RemoveLayer(block=up, layer=topology.layers(up)[1]))
    resolve(topology, edits)
    return PruningPlan(
        name=f"{plan.name}-compressed",
        family=plan.family,
        teacher_config_sha256=plan.teacher_config_sha256,
        edits=tuple(edits),
    )


def _removes_weights(edit: AnyEdit) -> bool:
    return edit.op.startswith("remove") or (isinstance(edit, ReplaceUnit) and edit.with_ == "pass_through")


# ---------------------------------------------------------------------------------------------- options


def adjust(
    recipe: Recipe, mode: str | None = None, weights: Mapping[str, float] | None = None, normalise: bool | None = None
) -> Recipe:
    """A recipe with another mode for its grafting stages, other weights, or raw or normalised features.

    A weight is given as `TERM`, for every stage in which the term is legal, or as `STAGE.TERM`.
    """
    if mode not in (None, *MODES):
        raise ValueError(f"unknown mode {mode!r}; choose from {', '.join(MODES)}.")

    def changed(topology: Topology, plan: PruningPlan, steps: int) -> tuple[Stage, ...]:
        stages = [_in_mode(stage, mode) for stage in recipe(topology, plan, steps)]
        for name in weights or {}:
            if not any(_term_for(stage, name) for stage in stages):
                terms = "; ".join(f"{', '.join(losses.legal(stage.mode))} in {stage.name}" for stage in stages)
                raise ValueError(f"no stage has a loss term {name!r}; choose from {terms}.")
        return tuple(_with_weights(stage, weights or {}, normalise) for stage in stages)

    return changed


def _in_mode(stage: Stage, mode: Any) -> Stage:
    if mode is None or stage.grafts_from is None or stage.mode == mode:
        return stage
    return replace(stage, mode=mode, weights=BLOCKWISE if mode == "blockwise" else SAS)


def _term_for(stage: Stage, name: str) -> str | None:
    """The term of a stage that a weight's name refers to, if any."""
    stage_name, _, term = name.rpartition(".")
    return term if stage_name in ("", stage.name) and losses.is_legal(term, stage.mode) else None


def _with_weights(stage: Stage, weights: Mapping[str, float], normalise: bool | None) -> Stage:
    changes = {term: weight for name, weight in weights.items() if (term := _term_for(stage, name))}
    merged = {term: weight for term, weight in {**stage.weights, **changes}.items() if weight}
    return replace(stage, weights=merged, normalise=stage.normalise if normalise is None else normalise)


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """`["features=0.5"]` → {"features": 0.5}; raises ValueError for a text that is not of that form."""
    weights = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise ValueError(f"the weight {text!r} is not of the form TERM=NUMBER.") from None
        if not 0 <= weights[name] < float("inf"):
            raise ValueError(f"the weight of {name} must be at least 0 and finite, got {value}.")
    return weights
