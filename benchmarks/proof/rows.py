"""The rows of the proof and what they have alike: where a plan comes from, which recipe trains it, what is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from asdm.distill import recipes
from asdm.distill.settings import DistillSettings
from asdm.distill.stages import Recipe
from asdm.models.units import INDEX
from asdm.plan import presets
from asdm.plan.edits import AnyEdit, PruningPlan, ReplaceUnit
from asdm.utils.settings import Option
from asdm_prof.planner import plan as planner
from asdm_prof.records import Damage, Profile
from benchmarks import baselines

TEACHER = "teacher"
PLANNED, BK_STYLE, WHOLE = "planned", "bk_style", "whole"


@dataclass(frozen=True)
class ProofSettings:
    """What all rows have in common."""

    family: Annotated[str, Option("Family with weights, or diffusers folder.")] = "mini"
    data: str = "emoji"
    split: str = "train"
    judged_on: Annotated[str, Option("Splits whose captions are drawn, separated by commas.")] = "held_out,train"
    budgets: Annotated[str, Option("Latencies that ours is planned for, separated by commas.")] = "0.78,0.65,0.5"
    steps: Annotated[int, Option("Training steps of a decisive row; an ablation takes half.", at_least=4)] = 800
    batch: Annotated[int, Option("Pictures per step.")] = 16
    learning_rate: Annotated[float, Option("Learning rate of every row.")] = 3e-4
    dtype: Annotated[str, Option("Autocast in training: fp32 or bf16.")] = "fp32"
    captions: Annotated[int, Option("Captions to draw, taken from all the splits.", at_least=4)] = 500
    curve: Annotated[
        int, Option("Captions of them that a learning curve draws at each of its four checkpoints.", at_least=0)
    ] = 100
    ablation_captions: Annotated[
        int, Option("Captions of them that an ablation, and the row it is compared with, draw.", at_least=4)
    ] = 200
    drawing_steps: Annotated[int, Option("Denoising steps per picture.", at_least=1)] = 20
    threads: Annotated[int | None, Option("CPU threads; default: torch's.")] = None

    def identity(self) -> dict[str, Any]:
        """The settings that change the result."""
        return {name: value for name, value in vars(self).items() if name not in ("family", "threads")}

    def drawn_as(self) -> dict[str, Any]:
        """The settings that change what a teacher draws."""
        return {name: vars(self)[name] for name in ("data", "judged_on", "captions", "drawing_steps")}

    def training(self, row: Row, seed: int, folder: Path) -> DistillSettings:
        """How a row's student trains, as `asdm distill` takes it; `folder` may have its units."""
        names = ("data", "split", "batch", "learning_rate", "dtype", "threads")
        given = {name: getattr(self, name) for name in names}
        units = units_folder(row, folder)
        steps, library = round(row.share * self.steps), str(units) if (units / INDEX).exists() else None
        return DistillSettings(seed=seed, steps=steps, units=library, **given)


@dataclass(frozen=True)
class Row:
    """One way to make a student.

    `plan` is a preset, "planned=BUDGET" (the least measured damage within it), "bk_style=BUDGET" (BK-SDM's rule at
    the latency of the plan of that budget), or "whole" (nothing is taken out). Latencies are equal by the profile; the
    measured ones stand beside them.
    """

    name: str
    what: str
    plan: str = ""
    recipe: str = ""
    swapped: Mapping[str, tuple[str, Mapping[str, Any]] | None] = field(default_factory=dict)  # replacement → another
    mode: str | None = None
    weights: Mapping[str, float] | None = None
    normalise: bool | None = None
    share: float = 1.0  # of the training steps
    fitted: bool = False  # its replaced units are refitted on calibration data before it trains
    rival: str | None = None  # the row that it is compared with at the same latency
    ablates: str | None = None  # the row that it equals except for one part

    def stages(self) -> Recipe:
        return recipes.adjust(recipes.load(self.recipe), self.mode, self.weights, self.normalise)

    @property
    def decisive(self) -> bool:
        """Whether it is trained in full, with a learning curve."""
        return self.share == 1.0


PAPER = Row("a_sdm_clme", "the paper’s every part", "a_sdm_clme", "progressive_incubation")
HALF = replace(PAPER, name="a_sdm_clme_half", what="the same in half of the steps, for its ablations", share=0.5)
ABLATION = replace(HALF, ablates=HALF.name)
CONTROL = Row("teacher_trained", "the teacher itself, trained as ours are", WHOLE, "bk_sdm", normalise=True)
OURS = Row("ours", "planned on measured damage, refitted, everything learns, features in the teacher’s units", PLANNED,
           "bk_sdm", normalise=True, fitted=True)  # fmt: skip


def _gri(**options: Any) -> dict[str, tuple[str, Mapping[str, Any]] | None]:
    return {"gri_attention": ("gri_attention", options)}


ABLATIONS = (
    replace(ABLATION, name="a_sdm", what="without CLME", plan="a_sdm"),
    replace(ABLATION, name="no_stage1", what="without stage 1", recipe="without_incubation"),
    replace(ABLATION, name="gate_timestep", what="gates on the timestep instead of the input",
            plan="a_sdm_clme_timestep"),
    replace(ABLATION, name="clme_original", what="with the kept layer’s original kernel as an expert too",
            swapped={"cond_conv": ("cond_conv", {"gate": "input", "original": True})}),
    replace(ABLATION, name="plain_attention", what="plain attention instead of GRI", swapped={"gri_attention": None}),
    replace(ABLATION, name="kv_downsample", what="pooled keys and values instead of GRI",
            swapped={"gri_attention": ("kv_downsample", {})}),
    replace(ABLATION, name="gri_quadrants", what="GRI on quadrants instead of phases",
            swapped=_gri(regions="quadrants")),
    replace(ABLATION, name="gri_whole", what="GRI’s pooled queries on all keys", swapped=_gri(regions="whole")),
    replace(ABLATION, name="no_mid_block", what="without the mid-block loss", weights={"mid_block": 0.0}),
    replace(ABLATION, name="no_vgg", what="without the VGG loss", weights={"perceptual": 0.0}),
    replace(ABLATION, name="vgg_prediction", what="VGG loss on the prediction, to the letter, instead of x̂₀",
            weights={"perceptual": 0.0, "combined.perceptual_prediction": 0.1}),
    replace(ABLATION, name="blockwise", what="blockwise instead of end to end", mode="blockwise"),
)  # fmt: skip


def all_rows(settings: ProofSettings) -> tuple[Row, ...]:
    """Every row in its order; raises ValueError for budgets that are not numbers.

    Ours at the smallest budget meets BK-SDM's rule at its latency, and at the next one BK-SDM-Base.
    """
    budgets = [text.strip() for text in settings.budgets.split(",")]
    try:
        budgets.sort(key=float)
    except ValueError:
        raise ValueError(f"budgets must be numbers with commas between them, got {settings.budgets!r}.") from None
    rivals = dict(zip(budgets, ("bk_sdm", "bk_sdm_base"), strict=False))
    ours = (replace(OURS, name=f"ours_{budget}", plan=f"{PLANNED}={budget}", rival=rivals.get(budget))
            for budget in reversed(budgets))  # fmt: skip
    return (
        Row(TEACHER, "the teacher"),
        Row("bk_sdm", "BK-SDM’s rule at the latency of the smallest of ours, BK-SDM’s recipe",
            f"{BK_STYLE}={budgets[0]}", "bk_sdm"),
        Row("bk_sdm_base", "BK-SDM-Base, BK-SDM’s recipe", "bk_sdm_base", "bk_sdm"),
        PAPER, *ours, CONTROL, HALF, *ABLATIONS,
    )  # fmt: skip


def chosen_rows(settings: ProofSettings, names: Sequence[str] = ()) -> tuple[Row, ...]:
    """Rows by name, in their order and with the teacher; all of them if none is named.

    Raises ValueError for an unknown name.
    """
    rows = all_rows(settings)
    known = [row.name for row in rows]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}.")
    return tuple(row for row in rows if not names or row.name in names or row.name == TEACHER)


# ---------------------------------------------------------------------------------------------- plans


def plans_of(rows: Sequence[Row], profile: Profile, damage: Damage, folder: Path) -> dict[str, PruningPlan]:
    """Every row's plan by its name, saved as `folder/plans/ROW.json`."""
    plans = {}
    for row in rows[1:]:
        edits = _edits(row, profile, damage)
        plans[row.name] = PruningPlan(
            name=row.name, family=profile.family, teacher_config_sha256=profile.config_sha256,
            edits=tuple(other for edit in edits if (other := _swapped(edit, row)) is not None),
        )  # fmt: skip
        plans[row.name].save(plan_file(row, folder), force=True)
    return plans


def _edits(row: Row, profile: Profile, damage: Damage) -> Sequence[AnyEdit]:
    kind, _, budget = row.plan.partition("=")
    if kind == WHOLE:
        return ()
    if not budget:
        return presets.PRESETS[kind](profile.topology)
    planned = planner.make_plan(profile, budget, damage=damage).edits
    return planned if kind == PLANNED else baselines.bk_style(profile, planner.price(profile, planned).ratio)


def _swapped(edit: AnyEdit, row: Row) -> AnyEdit | None:
    """The edit as this row makes it; None where the row leaves it out."""
    if not isinstance(edit, ReplaceUnit) or edit.with_ not in row.swapped:
        return edit
    other = row.swapped[edit.with_]
    return other and ReplaceUnit(unit=edit.unit, with_=other[0], options=dict(other[1]))


def plan_file(row: Row, folder: Path) -> Path:
    """Where a row's plan is saved."""
    return folder / "plans" / f"{row.name}.json"


def units_folder(row: Row, folder: Path) -> Path:
    """Where the refitted units of a row's plan are kept, which all its seeds start from."""
    return folder / "units" / row.name
