"""The commands as Python functions: they take what the commands take, and return the records that those write.

Nothing is printed, and no file is written unless an output is named. ValueError says what the commands say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdm.distill.settings import DistillSettings
from asdm.evaluate.settings import BenchSettings
from asdm.models.settings import GenerateSettings, Setup
from asdm.plan.edits import PruningPlan
from asdm.records.bench import BenchResult
from asdm.records.build import BuildResult, ExportResult
from asdm.records.distill import DistillResult
from asdm.schedule.schedule import Schedule
from asdm.utils import sizes
from asdm.utils.record import Record, read_json
from asdm.utils.runs import find_input
from asdm.utils.settings import takes
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Damage, Profile, ScheduleFrontier, StepsDamage, Validation, kinds

if TYPE_CHECKING:
    from asdm_prof.analysis.diff import Difference
    from asdm_prof.analysis.rank import Ranked

# ---------------------------------------------------------------------------------------------- measure and plan


def flops(family: str, *, batch: int = 1, size: Any = None, like: str | None = None) -> dict[str, Any]:
    """Exact MACs and parameters of every unit (`asdm.flops/1`), on the meta device."""
    from asdm_prof.profiler import costs

    return costs.flops_of(family, batch, None if size is None else sizes.parse(size), like)


@takes(ProfileSettings)
def profile(family: str, *, watch: Callable[[Any], None] | None = None, **settings: Any) -> Profile:
    """Time every unit of a UNet in place; `watch` is called with the stage, the calls so far and the seconds left."""
    from asdm.models.execution import resolve
    from asdm_prof.profiler.profile import profile as measure

    return measure(family, resolve(ProfileSettings, settings), watch, command=f"asdm_prof.profile({family!r})")


def rank(profile: Profile) -> list[Ranked]:
    """Units from most to least redundant, with tie groups."""
    from asdm_prof.analysis.rank import rank as ranking

    return ranking(profile)


def plan(
    profile: Profile,
    budget: str | float | Mapping[str, str],
    *,
    confidence: float = 0.95,
    validation: Validation | None = None,
    damage: Damage | None = None,
    loads_in: Sequence[str] = (),
) -> PruningPlan:
    """The legal plan of least damage within a budget: 0.8, "80%", "250ms" or "x1.3", or {"macs": "0.8", …}.

    Without `damage`, the structural prior stands for it. `loads_in` names programs that must load the student:
    comfyui, sdcpp, diffusers.
    """
    from asdm_prof.planner import plan as planner
    from asdm_prof.planner.loads_in import parse_programs

    budgets = str(budget) if isinstance(budget, str | float | int) else budget
    return planner.make_plan(profile, budgets, confidence, validation, damage, parse_programs(",".join(loads_in)))


def schedule(
    profile: Profile,
    budget: str | float | None = None,
    *,
    damage: StepsDamage | None = None,
    steps: int | None = None,
    scheduler: str | None = None,
    students: Sequence[str | Path] = (),
    price: Schedule | str | Path | None = None,
) -> Schedule | ScheduleFrontier:
    """The schedule of least damage within a whole image's budget, or without one the frontier of all of them.

    `price` is a schedule, its file or a preset, whose latency and damage are told instead of planning one. Without
    `damage` (`asdm-prof sensitivity --across-steps`), a structural prior stands for it.
    """
    from asdm_prof.planner.schedule import plan as planner, sources

    if budget is not None and price is not None:
        raise ValueError("price evaluates an existing schedule and cannot be combined with budget.")
    problem = sources.problem(profile, damage, steps, scheduler, [str(one) for one in students])
    if price is not None:
        priced = price if isinstance(price, Schedule) else sources.schedule_at(str(price), problem)
        return planner.price_schedule(problem, priced)
    return planner.make_frontier(problem) if budget is None else planner.make_schedule(problem, str(budget))


def diff(before: Profile, after: Profile) -> Difference:
    """What changed from one profile to another, unit by unit, with intervals; `unlike` names what does not compare."""
    from asdm_prof.analysis.diff import diff as compare

    return compare(before, after)


# ---------------------------------------------------------------------------------------------- build and bench


@takes(Setup)
def build(
    plan: PruningPlan | str | Path,
    output: str | Path,
    *,
    teacher: str | None = None,
    stage1: str | None = None,
    units: str | Path | None = None,
    force: bool = False,
    **settings: Any,
) -> BuildResult:
    """Apply a plan, a plan's file or a preset to its teacher, and save the student to the folder `output`.

    Replaced units have their weights of the library `units` (`asdm distill-units`), where it has some.
    """
    from asdm.models.build import build_student
    from asdm.models.execution import resolve

    with _sources(plan) as (source,):
        setup, library = resolve(Setup, settings), None if units is None else Path(units)
        return build_student(source, teacher, Path(output), stage1, setup, force, units=library)


@takes(DistillSettings)
def distill(
    plan: PruningPlan | str | Path,
    output: str | Path,
    *,
    teacher: str,
    recipe: str = "progressive_incubation",
    stage: str | None = None,
    force: bool = False,
    watch: Callable[[Any], None] = lambda _: None,
    **settings: Any,
) -> DistillResult:
    """Train a plan's student in the folder `output`, or resume its training; `watch` is called after every step."""
    from asdm.distill import recipes, run
    from asdm.models.execution import resolve

    folder, wanted, stages = Path(output), resolve(DistillSettings, settings), recipes.load(recipe)
    command = f"asdm_prof.distill(…, {str(output)!r})"
    with _sources(plan) as (source,):
        return run.distill(source, teacher, folder, wanted, stages, stage, force, on_progress=watch, command=command)


@takes(BenchSettings)
def bench(
    teacher: str,
    students: Sequence[PruningPlan | str | Path] | PruningPlan | str | Path = (),
    *,
    schedules: Sequence[str | Path] = (),
    **settings: Any,
) -> BenchResult:
    """Measure students (plans, presets or folders) against their teacher, in pairs, and schedules on each of them."""
    from asdm.evaluate import benchmark
    from asdm.models.execution import resolve

    several = [students] if isinstance(students, PruningPlan | str | Path) else list(students)
    command = f"asdm_prof.bench({teacher!r}, …)"
    with _sources(*several) as sources:
        asked = resolve(BenchSettings, settings)
        return benchmark.bench(teacher, sources, asked, command=command, schedules=list(map(str, schedules)))


@contextmanager
def _sources(*plans: PruningPlan | str | Path) -> Iterator[list[str]]:
    """What the builder reads: a plan in memory becomes a file for as long as the `with`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [
            plan.save(Path(folder) / f"plan-{i}.json") if isinstance(plan, PruningPlan) else find_input(Path(plan))
            for i, plan in enumerate(plans)
        ]
        yield [str(file) for file in files]


@takes(GenerateSettings)
def generate(prompt: str, *, family: str | None = None, student: str | Path | None = None, **settings: Any) -> Any:
    """One picture (PIL) of a prompt, drawn by a family's UNet or a student's."""
    from asdm.models import pipeline
    from asdm.models.execution import resolve

    folder = str(student) if student else None
    return pipeline.generate(family, [prompt], resolve(GenerateSettings, settings), folder)[0]


@takes(Setup)
def export(
    source: str | Path,
    output: str | Path,
    *,
    to: str = "onnx",
    schedule: str | Path | None = None,
    steps: int = 30,
    force: bool = False,
    **settings: Any,
) -> ExportResult:
    """Write a student, a family or a folder as ONNX, OpenVINO or diffusers, after comparing it with PyTorch.

    With a `schedule`, a file or a preset of so many `steps`, its passes become a set of graphs.
    """
    from asdm.models import export as exporter
    from asdm.models.execution import resolve

    setup = resolve(Setup, settings)
    if schedule is None:
        return exporter.export(str(source), to, Path(output), setup, force)
    from asdm.schedule.graphs import export as graphs

    return graphs.export_schedule(str(source), str(schedule), to, Path(output), setup, steps, force, lambda *_: None)


# ---------------------------------------------------------------------------------------------- files


def report(
    profile: Profile | str | Path,
    folder: str | Path,
    *,
    plan: PruningPlan | None = None,
    benches: Sequence[BenchResult] = (),
    formats: Sequence[str] = ("html",),
    force: bool = False,
) -> list[Path]:
    """Render a profile, a plan and benchmarks into `folder`, and return the files.

    For a profile's path, what belongs to it is gathered from the files beside it and under `reports/`.
    """
    import dataclasses

    from asdm.utils import registry
    from asdm.utils.io import check_writable
    from asdm_prof.renderers import _collect

    renderers = [registry.load("asdm_prof.renderers", name) for name in formats]
    if isinstance(profile, Profile):
        collected = _collect.of_records(profile)
    else:
        path = Path(profile) / "profile.json" if Path(profile).is_dir() else Path(profile)
        collected = _collect.report(Profile.load(path), path)
    named: dict[str, Any] = {"plan": plan, "benches": tuple(benches)}
    collected = dataclasses.replace(collected, **{name: value for name, value in named.items() if value})
    for renderer in renderers:
        if renderer.OUTPUT:
            check_writable(Path(folder) / renderer.OUTPUT, force)
    return [path for renderer in renderers for path in renderer.render(collected, Path(folder))]


def load(path: str | Path) -> Record:
    """Read any file that a command wrote, as the record that its `schema` names.

    Raises ValueError where it has none of ours.
    """
    data = read_json(Path(path))
    schema = str(data.get("schema")) if isinstance(data, dict) else "None"
    model = kinds().get(schema.partition("/")[0])
    if model is None:
        known = ", ".join(sorted(kind.SCHEMA for kind in kinds().values()))
        raise ValueError(f"{path} has schema {schema}; this reads {known}.")
    return model.parse(data, str(path))


def env() -> dict[str, Any]:
    """What a bug report needs (`asdm.env/1`): versions, processor, devices, what is installed of the extras."""
    from asdm_prof.profiler import environment

    return environment.facts()
