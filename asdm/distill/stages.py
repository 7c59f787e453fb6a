"""Stages, which are data, and a recipe of them resolved for one teacher, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from asdm.distill import losses
from asdm.distill.losses import Mode
from asdm.distill.settings import DistillSettings, check_settings
from asdm.models import build, graft, loading, student as students
from asdm.models.families import Family
from asdm.models.sources import check_prediction, family_in_plan, family_of
from asdm.plan.edits import PruningPlan
from asdm.plan.legality import ResolvedPlan
from asdm.plan.topology import Topology
from asdm.unet import blocks, flops, hooks
from asdm.unet.inputs import check_caption_only
from asdm.unet.surgery import Applied, MakeUnit, resolved_on

TEACHER = "teacher"  # `grafts_from` of a stage whose shallow blocks start as the teacher's


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe: a plan, what its student starts from, and what it learns.

    With `grafts_from`, the name of an earlier stage, the student is the combined UNet (§2.2, Fig. 4): that stage's
    shallow blocks on the frozen teacher. `TEACHER` takes the teacher's own shallow blocks, pruned by the plan. Without
    `grafts_from`, the student is the teacher pruned by the plan, and all of it is trained.
    """

    name: str
    plan: PruningPlan
    steps: int
    weights: Mapping[str, float]  # loss term → weight
    grafts_from: str | None = None  # a stage's name, or TEACHER
    mode: Mode = "end_to_end"
    normalise: bool = True

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the result, as plain JSON."""
        plain = {key: getattr(self, key) for key in ("name", "steps", "grafts_from", "mode", "normalise")}
        return plain | {"plan_sha256": self.plan.sha256(), "weights": dict(self.weights)}


Recipe = Callable[[Topology, PruningPlan, int], tuple[Stage, ...]]


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe's stages for one plan and teacher, before any weights are loaded."""

    family: Family
    meta_teacher: nn.Module
    plan: PruningPlan
    stages: tuple[Stage, ...]

    @cached_property
    def cost(self) -> flops.Count:
        """The teacher's parameters and MACs."""
        return build.count(self.family, self.meta_teacher)

    @cached_property
    def plans(self) -> dict[str, ResolvedPlan]:
        """Stage → its plan, resolved against the teacher."""
        return {stage.name: resolved_on(self.meta_teacher, stage.plan) for stage in self.stages}


def resolve_recipe(source: str, teacher: str | None, settings: DistillSettings, recipe: Recipe) -> ResolvedRecipe:
    """The stages of a recipe for a plan and a teacher, by default the plan's family.

    Raises ValueError for settings or terms that do not fit.
    """
    check_settings(settings)
    family = family_of(teacher or family_in_plan(source), settings)
    check_caption_only(family.unet, family.name, "asdm distill")
    check_prediction(family, "asdm distill")
    shapes = loading.meta_unet(family).requires_grad_(False)
    resolved = students.read_plan(source, shapes, family.name)
    stages = recipe(resolved.topology, resolved.plan, settings.steps)
    for stage in stages:
        if illegal := sorted(name for name in stage.weights if not losses.is_legal(name, stage.mode)):
            raise ValueError(
                f"the stage {stage.name} ({stage.mode}) has no loss term {illegal[0]!r}; choose from "
                f"{', '.join(losses.legal(stage.mode))}."
            )
    return ResolvedRecipe(family, shapes, resolved.plan, stages)


def select_stages(stages: Sequence[Stage], only: str | None) -> tuple[Stage, ...]:
    """All stages, or the one named `only`; raises ValueError with the choices."""
    selected = tuple(stage for stage in stages if only in (None, stage.name))
    if not selected:
        raise ValueError(f"unknown stage {only!r}; choose from {', '.join(stage.name for stage in stages)}.")
    return selected


def end_step(stages: Sequence[Stage], stage: Stage) -> int:
    """The last step of a stage, counted over all stages."""
    return sum(other.steps for other in stages[: stages.index(stage) + 1])


def check_pause(stages: Sequence[Stage], until: int, only: str | None) -> None:
    """Raise ValueError for a step outside the run, or one at which no student of the plan can be made."""
    if only is not None:
        raise ValueError(f"--until counts the steps of all stages, so it cannot be combined with --stage {only}.")
    total = end_step(stages, stages[-1])
    if not 0 < until <= total:
        raise ValueError(f"--until must be between 1 and {total}, got {until}.")
    stage = next(stage for stage in stages if until <= end_step(stages, stage))
    if stage is not stages[-1] and stages[-1].grafts_from != stage.name:
        raise ValueError(
            f"--until {until} falls into the stage {stage.name}, of which no student of the plan can be made; pause in "
            f"{stages[-1].name}, from step {total - stages[-1].steps + 1} on."
        )


def meta_student(recipe: ResolvedRecipe, stage: Stage) -> tuple[Any, Applied]:
    """A stage's student on the meta device, frozen as in training."""
    by_name = {other.name: other for other in recipe.stages}
    return build_student(recipe, stage, recipe.meta_teacher, lambda name: meta_student(recipe, by_name[name])[0])


def build_student(
    recipe: ResolvedRecipe,
    stage: Stage,
    teacher: nn.Module,
    load_student: Callable[[str], nn.Module],
    make: MakeUnit | None = None,
) -> tuple[Any, Applied]:
    """A stage's student from its teacher and, where it grafts, from the student of the stage that it grafts from.

    `make` makes its replaced units, such as a library of them.
    """
    plan, source = recipe.plans[stage.name], stage.grafts_from
    if source is None:
        student, applied = students.build(teacher, plan, make)
        return make_trainable(student), applied
    if source == TEACHER:
        return graft.assemble(teacher, None, plan, make=make)
    return graft.assemble(teacher, load_student(source), plan, recipe.plans[source], make)


def make_trainable(student: Any) -> Any:
    """Make all of a student trainable, in memory of its own: it was built from the teacher's tensors."""
    for parameter in student.parameters():
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
    return student


def active_terms(
    stage: Stage, student: Any, places: Mapping[str, hooks.Places]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """A stage's terms with their weights, and those left out because this student has nothing for them to compare."""
    last = [block for _, block in blocks.iter_blocks(student)][-1]
    no_output = stage.mode == "blockwise" and not any(p.requires_grad for p in last.parameters())
    left_out = tuple(
        name
        for name in stage.weights
        if not places.get(name, True) or (no_output and losses.load(name).COMPARES == "predictions")
    )
    weights = {name: weight for name, weight in stage.weights.items() if weight and name not in left_out}
    if not weights:
        raise ValueError(f"the stage {stage.name} has no loss term left to learn from; give one a weight (--weight).")
    return weights, left_out
