"""What a schedule is planned from, as users name it: samplers, students, schedule files and presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from asdm.models.settings import sampler_named
from asdm.schedule.schedule import Schedule, by_name
from asdm.utils.runs import find_input
from asdm_prof.planner.schedule.plan import StepsProblem, prepare
from asdm_prof.records import Profile, StepsDamage


def problem(
    profile: Profile,
    damage: StepsDamage | None = None,
    steps: int | None = None,
    scheduler: str | None = None,
    students: Sequence[str] = (),
) -> StepsProblem:
    """The problem behind a schedule, with students that may draw steps (folders, plans or presets).

    Raises ValueError for an unknown sampler, fewer than 2 steps, and what `prepare` refuses.
    """
    sampler = None if scheduler is None else sampler_named(scheduler)
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}.")
    named = by_name(students)
    return prepare(profile, damage, steps, sampler, named, _ratios(profile, named))


def schedule_at(source: str, problem: StepsProblem) -> Schedule:
    """A schedule's file, or a preset on the profile's UNet."""
    from asdm.schedule import presets

    profile = problem.profile
    if presets.is_preset(source):
        return presets.make(source, profile.topology, problem.model.calls, profile.family, profile.config_sha256)
    return Schedule.load(find_input(Path(source)))


def _ratios(profile: Profile, students: Mapping[str, str]) -> dict[str, float]:
    """Predicted time of each student, as a share of the teacher's."""
    if not students:
        return {}
    from asdm.models import loading
    from asdm.models.families import load_family
    from asdm.models.student import read_plan
    from asdm_prof.planner import plan as planner

    teacher = loading.meta_unet(load_family(profile.family))
    ratios = {}
    for name, source in students.items():
        file = Path(source) / "plan.json" if Path(source).is_dir() else Path(source)
        if Path(source).is_dir() and not file.exists():
            raise ValueError(f"{source} has no plan.json, so its time is not known; name a plan or a preset instead.")
        plan = read_plan(str(file), teacher, profile.family)
        ratios[name] = planner.price(profile, plan).ratio
    return ratios
