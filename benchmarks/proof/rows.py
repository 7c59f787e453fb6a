"""The rows of the proof and what they have alike: where a plan comes from, which recipe trains it, what is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from asdm.distill import recipes
from asdm.distill.settings import DistillSettings
from asdm.distill.stages import Recipe
from asdm.plan import presets
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.utils.settings import Option
from asdm_prof.planner import plan as planner
from asdm_prof.records import Damage, Profile
from benchmarks import baselines

TEACHER = "teacher"
PLANNED, BK_STYLE = "planned", "bk_style"


@dataclass(frozen=True)
class ProofSettings:
    """What all rows have in common."""

    family: Annotated[str, Option("Family with weights, or diffusers folder.")] = "mini"
    data: str = "emoji"
    split: str = "train"
    judged_on: str = "held_out"
    budget: Annotated[str, Option("Latency that ours is planned for.")] = "0.78"
    steps: Annotated[int, Option("Training steps per row, all stages together.", at_least=2)] = 400
    batch: Annotated[int, Option("Pictures per step.")] = 16
    learning_rate: Annotated[float, Option("Learning rate of every row.")] = 3e-4
    dtype: Annotated[str, Option("Autocast in training: fp32 or bf16.")] = "fp32"
    captions: Annotated[int | None, Option("Held-out captions to draw; default: all.", at_least=4)] = None
    drawing_steps: Annotated[int, Option("Denoising steps per picture.", at_least=1)] = 20
    threads: Annotated[int | None, Option("CPU threads; default: torch's.")] = None

    def identity(self) -> dict[str, Any]:
        """The settings that change the result."""
        return {name: value for name, value in vars(self).items() if name not in ("family", "threads")}

    def training(self, seed: int) -> DistillSettings:
        """How a student trains, as `asdm distill` takes it."""
        names = ("data", "split", "steps", "batch", "learning_rate", "dtype", "threads")
        return DistillSettings(seed=seed, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Row:
    """One way to make a student.

    `plan` is a preset; "planned" (the least measured damage within the budget); "planned=PRESET" (the same at that
    preset's latency); or "bk_style" (BK-SDM's rule at the latency of "planned"). Latencies are equal by the profile;
    the measured ones stand beside them.
    """

    name: str
    what: str
    plan: str = ""
    recipe: str = ""
    without: tuple[str, ...] = ()  # replacements that are left out of the plan
    mode: str | None = None
    weights: Mapping[str, float] | None = None
    normalise: bool | None = None
    rival: str | None = None  # the row that it is compared with at the same latency
    ablates: str | None = None  # the row that it equals except for one part

    def stages(self) -> Recipe:
        return recipes.adjust(recipes.load(self.recipe), self.mode, self.weights, self.normalise)


PAPER = Row("a_sdm", "the paper’s assembly and recipe", "a_sdm_clme", "progressive_incubation")
OURS = Row("ours", "planned on measured damage, everything learns, features in the teacher’s units", PLANNED, "bk_sdm",
           normalise=True, rival="bk_sdm")  # fmt: skip
ROWS = (
    Row(TEACHER, "the teacher"),
    Row("bk_sdm", "BK-SDM’s rule at our latency, BK-SDM’s recipe", BK_STYLE, "bk_sdm"),
    Row("bk_sdm_base", "BK-SDM-Base, BK-SDM’s recipe", "bk_sdm_base", "bk_sdm"),
    PAPER,
    OURS,
    replace(OURS, name="ours_at_base", what="as ours, at the latency of BK-SDM-Base", plan=f"{PLANNED}=bk_sdm_base",
            rival="bk_sdm_base"),
    replace(OURS, name="ours_raw", what="with BK-SDM’s own recipe, features summed raw", normalise=None, rival=None,
            ablates="ours"),
    replace(PAPER, name="no_stage1", what="without stage 1", recipe="without_incubation", ablates="a_sdm"),
    replace(PAPER, name="no_clme", what="without CLME", plan="a_sdm", ablates="a_sdm"),
    replace(PAPER, name="gate_timestep", what="gates on the timestep instead of the input", plan="a_sdm_clme_timestep",
            ablates="a_sdm"),
    replace(PAPER, name="no_gri", what="without GRI", without=("gri_attention",), ablates="a_sdm"),
    replace(PAPER, name="no_mid_block", what="without the mid-block loss", weights={"mid_block": 0.0}, ablates="a_sdm"),
    replace(PAPER, name="no_vgg", what="without the VGG loss", weights={"perceptual": 0.0}, ablates="a_sdm"),
    replace(PAPER, name="blockwise", what="blockwise instead of end to end", mode="blockwise", ablates="a_sdm"),
)  # fmt: skip


def chosen_rows(names: Sequence[str] = ()) -> tuple[Row, ...]:
    """Rows by name, in the order of `ROWS` and with the teacher; all of them if none is named.

    Raises ValueError for an unknown name.
    """
    known = [row.name for row in ROWS]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}.")
    return tuple(row for row in ROWS if not names or row.name in names or row.name == TEACHER)


# ---------------------------------------------------------------------------------------------- plans


def plans_of(
    rows: Sequence[Row], profile: Profile, damage: Damage, budget: str, folder: Path
) -> dict[str, PruningPlan]:
    """Every row's plan by its name, saved as `folder/plans/ROW.json`."""
    planned = planner.make_plan(profile, budget, damage=damage)
    plans = {}
    for row in rows[1:]:
        plan = _plan(row, planned, profile, damage)
        edits = tuple(e for e in plan.edits if not (isinstance(e, ReplaceUnit) and e.with_ in row.without))
        plans[row.name] = plan.model_copy(update={"name": row.name, "edits": edits})
        plans[row.name].save(plan_file(row, folder), force=True)
    return plans


def _plan(row: Row, planned: PruningPlan, profile: Profile, damage: Damage) -> PruningPlan:
    if row.plan == PLANNED:
        return planned
    kind, _, preset = row.plan.rpartition("=")
    if kind == PLANNED:
        ratio = planner.price(profile, presets.PRESETS[preset](profile.topology)).ratio
        return planner.make_plan(profile, f"{ratio:.6f}", confidence=0.5, damage=damage)
    if row.plan == BK_STYLE:
        edits = baselines.bk_style(profile, planner.price(profile, planned.edits).ratio)
    else:
        edits = tuple(presets.PRESETS[row.plan](profile.topology))
    return PruningPlan(family=profile.family, teacher_config_sha256=profile.config_sha256, edits=edits)


def plan_file(row: Row, folder: Path) -> Path:
    """Where a row's plan is saved."""
    return folder / "plans" / f"{row.name}.json"
