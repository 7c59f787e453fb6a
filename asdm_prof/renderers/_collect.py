"""A report: a profile with what followed from it, found by the hashes in the files beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from asdm.plan.edits import PruningPlan
from asdm.plan.legality import ResolvedPlan, resolve
from asdm.records.bench import BenchResult, BenchStudent
from asdm.schedule.schedule import Schedule
from asdm.utils import console
from asdm.utils.record import Record, read_json
from asdm.utils.runs import REPORTS, find_input, newest_first
from asdm.utils.sizes import Size
from asdm_prof.analysis import structure
from asdm_prof.analysis.rank import Ranked, rank
from asdm_prof.analysis.tree import Node, tree_of
from asdm_prof.records import Comparison, Damage, Frontier, Profile, Search, StepsDamage, TrainingLog, Validation

R = TypeVar("R", bound=Record)
COMPARED = ("sd15", "sd21_base")  # Fig. 1 of the paper: Stable Diffusion v1 and v2

# ---------------------------------------------------------------------------------------------- what a report holds


@dataclass(frozen=True)
class FamilyCost:
    """One component of one family: parameters, MACs of one call, and calls per image (Fig. 1)."""

    family: str
    title: str
    component: str
    params: int
    macs: int
    calls: int


@dataclass(frozen=True)
class Report:
    """What a report is made of: a profile, and what followed from it where it was run.

    `family_costs` is Fig. 1 of the paper: rows of parameters and MACs per image for the families compared.
    """

    profile: Profile
    plan: PruningPlan | None = None
    benches: tuple[BenchResult, ...] = ()  # students of this teacher: the plan's own, and presets such as a_sdm
    sources: dict[str, str] = field(default_factory=dict)  # what → the file it was read from
    family_costs: tuple[FamilyCost, ...] = ()
    validation: Validation | None = None
    comparison: Comparison | None = None
    damage: Damage | None = None
    other_damage: Damage | None = None  # after units were fitted or trained, where `damage` is before, or vice versa
    frontier: Frontier | None = None
    log: TrainingLog | None = None  # of the distillation of one of the students
    beside: Profile | None = None  # of another model of the same blocks, to see what structure they share
    search: Search | None = None
    schedule: Schedule | None = None
    steps_damage: StepsDamage | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # records of the kinds that others add

    @cached_property
    def tree(self) -> Node:
        return tree_of(self.profile)

    @cached_property
    def ranked(self) -> list[Ranked]:
        return rank(self.profile)

    @cached_property
    def resolution(self) -> tuple[ResolvedPlan | None, str]:
        """What the plan leaves of this UNet, or why it does not fit."""
        try:
            return (resolve(self.profile.topology, self.plan.edits), "") if self.plan else (None, "")
        except ValueError as error:
            return None, str(error)

    @property
    def students(self) -> list[BenchStudent]:
        return [student for bench in self.benches for student in bench.students]

    @property
    def own_student(self) -> BenchStudent | None:
        """The measured student of the report's own plan."""
        return next((student for student in self.students if self.is_own(student)), None)

    def is_own(self, student: BenchStudent) -> bool:
        """Whether a student was built from the report's plan."""
        return self.plan is not None and student.plan_sha256 == self.plan.sha256()

    def own_point(self) -> tuple[float, float] | None:
        """Where the plan stands beside the frontier: its cost and damage; None where the two measure damage apart."""
        plan, frontier = self.plan, self.frontier
        if plan is None or frontier is None:
            return None
        for point in frontier.points:
            if sorted(map(str, point.edits)) == sorted(map(str, plan.edits)):
                return frontier.cost(point), point.damage
        alike = (plan.damage_from, plan.damage_sha256) == (frontier.damage_from, frontier.damage_sha256)
        if not alike or frontier.by != "latency" or plan.predicted is None or plan.proof is None:
            return None
        return plan.predicted.ratio, plan.proof.damage


# ---------------------------------------------------------------------------------------------- where it is found


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A kind of file that may belong to a profile; `check` raises ValueError where one does not."""

    model: type[R]
    check: Callable[[Profile, R], None]

    @property
    def files(self) -> str:
        """A pattern of their names: `damage*.json` for the schema `asdm.damage/1`."""
        name = self.model.SCHEMA.partition("/")[0].removeprefix("asdm.")
        return f"{name}*.json"


def check_same_profile(profile: Profile, record: Any) -> None:
    """A record is of one profile; raises ValueError where it is of another."""
    if record.profile_sha256 != profile.sha256():
        raise ValueError(f"it was made from another profile ({record.profile_sha256[:12]}).")


def _holds_profile(profile: Profile, comparison: Comparison) -> None:
    if profile.sha256() not in [one.sha256 for one in comparison.profiles]:
        raise ValueError("it compares other profiles.")


def _check_damage(profile: Profile, damage: Damage) -> None:
    from asdm_prof.planner.plan import check_damage  # brings scipy along, which most reports do without

    check_damage(profile, damage)


def _check_other_damage(damage: Damage, profile: Profile, other: Damage) -> None:
    _check_damage(profile, other)
    if (other.data, other.split) != (damage.data, damage.split):
        raise ValueError("it was measured on other pictures.")
    if (other.units_sha256 is None) == (damage.units_sha256 is None):
        raise ValueError("both are from before, or both from after.")


def _check_steps_damage(profile: Profile, damage: StepsDamage) -> None:
    from asdm_prof.planner.schedule.plan import check

    check(profile, damage)


def _check_frontier(profile: Profile, frontier: Frontier) -> None:
    if frontier.profile_sha256 != profile.sha256():
        raise ValueError(
            f"the frontier was made from another profile ({frontier.family}, {frontier.profile_sha256[:12]}) than this "
            f"one ({profile.family}, {profile.sha256()[:12]}); `asdm-prof frontier --profile` makes this one's."
        )


# A report's field → the files that it is read from.
KINDS: dict[str, Kind[Any]] = {
    "validation": Kind(Validation, check_same_profile),
    "comparison": Kind(Comparison, _holds_profile),
    "damage": Kind(Damage, _check_damage),
    "frontier": Kind(Frontier, _check_frontier),
    "search": Kind(Search, check_same_profile),
    "schedule": Kind(Schedule, check_same_profile),
    "steps_damage": Kind(StepsDamage, _check_steps_damage),
}


def report(
    profile: Profile,
    path: Path,
    plan: Path | None = None,
    benches: Sequence[Path] | None = None,
    damage: Path | None = None,
    frontier: Path | None = None,
    log: Path | None = None,
    beside: Path | None = None,
    extra: Mapping[str, Kind[Any]] | None = None,
) -> Report:
    """A profile with what followed from it; files are matched by the hashes in them.

    `extra` are kinds of files besides KINDS. Raises ValueError for a named file that belongs to another teacher.
    """
    folder, named = path.parent, {"damage": damage, "frontier": frontier}
    sources = {"profile": str(path)}
    own_plan = _plan(profile, plan, folder, sources)
    own_benches = _benches(profile, own_plan, benches, folder, sources)
    records = {what: _record(what, kind, profile, named.get(what), folder, sources) for what, kind in KINDS.items()}
    if damage_record := records["damage"]:
        other_side = replace(KINDS["damage"], check=partial(_check_other_damage, damage_record))
        records["other_damage"] = _record("other damage", other_side, profile, None, folder, sources)
    if log is not None:
        log = find_input(log)
        sources["log"] = str(log)
    return Report(
        profile=profile,
        plan=own_plan,
        benches=tuple(own_benches),
        sources=sources,
        family_costs=tuple(_family_costs(profile)),
        log=TrainingLog.load(log) if log else None,
        beside=_beside(profile, beside, sources),
        extra={what: _record(what, kind, profile, None, folder, sources) for what, kind in (extra or {}).items()},
        **records,
    )


def of_records(profile: Profile) -> Report:
    """A profile by itself, with Fig. 1."""
    return Report(profile, family_costs=tuple(_family_costs(profile)))


def _record(
    what: str, kind: Kind[R], profile: Profile, named: Path | None, folder: Path, sources: dict[str, str]
) -> R | None:
    """The file that was named, or else the newest that belongs to the profile."""
    if named is not None:
        named = find_input(named)
        record = kind.model.load(named)
        try:
            kind.check(profile, record)
        except ValueError as error:
            raise ValueError(f"{named}: {error}") from None
        sources[what] = str(named)
        return record
    for path, record in _readable(_newest_first(folder, kind.files), kind.model, partial(kind.check, profile)):
        sources[what] = str(path)
        return record
    return None


def _plan(profile: Profile, named: Path | None, folder: Path, sources: dict[str, str]) -> PruningPlan | None:
    """The plan that was named, or else the newest made from the profile."""
    if named is not None:
        named = find_input(named)
        plan = PruningPlan.load(named)
        if plan.teacher_config_sha256 not in (None, profile.config_sha256):
            raise ValueError(
                f"{named} was made for another teacher ({plan.family}) than the profile ({profile.family})."
            )
        sources["plan"] = str(named)
        return plan
    sha256 = profile.sha256()
    for path, plan in _readable(_newest_first(folder, "plan*.json"), PruningPlan):
        if plan.profile_sha256 == sha256:
            sources["plan"] = str(path)
            return plan
    return None


def _benches(
    profile: Profile, plan: PruningPlan | None, named: Sequence[Path] | None, folder: Path, sources: dict[str, str]
) -> list[BenchResult]:
    """Benchmarks of the teacher: those that were named, or those beside the profile and of the plan's student."""
    if named:
        candidates = [(path, BenchResult.load(path)) for path in map(find_input, named)]
    else:
        candidates = list(_readable(_newest_first(folder, "bench*.json"), BenchResult))
    benches: list[BenchResult] = []
    for path, bench in candidates:
        same_teacher = bench.teacher_config_sha256 == profile.config_sha256
        if named and not same_teacher:
            raise ValueError(f"{path} measured another teacher ({bench.family}) than the profile ({profile.family}).")
        if named or (same_teacher and (path.parent == folder or _holds(bench, plan))):
            sources[f"bench {len(benches) + 1}" if benches else "bench"] = str(path)
            benches.append(bench)
    return benches


def _holds(bench: BenchResult, plan: PruningPlan | None) -> bool:
    return plan is not None and any(student.plan_sha256 == plan.sha256() for student in bench.students)


def _beside(profile: Profile, named: Path | None, sources: dict[str, str]) -> Profile | None:
    """The profile of another model; raises ValueError where its blocks are not the same."""
    if named is None:
        return None
    other = Profile.load(find_input(named))
    structure.rows(profile, other)
    sources["beside"] = str(named)
    return other


def newest_profile(config_sha256: str, **wanted: str | Size | None) -> tuple[Profile, Path] | None:
    """The profile of one model under `reports/` that was last measured, taken with the settings that are not None."""
    for path, profile in _readable(_newest_first(REPORTS, "profile.json"), Profile):
        if profile.config_sha256 == config_sha256 and not unlike(profile, **wanted):
            return profile, path
    return None


def unlike(profile: Profile, **wanted: str | Size | None) -> list[str]:
    """The wanted settings, None standing for any, that a profile was not taken with."""
    return [name for name, value in wanted.items() if value is not None and getattr(profile, name) != value]


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    """Files beside the profile, then those of all runs, each group newest first."""
    beside = newest_first(folder.glob(pattern))
    return beside + [path for path in newest_first(REPORTS.glob(f"*/{pattern}")) if path not in beside]


def _readable(
    paths: Iterable[Path], model: type[R], check: Callable[[R], None] | None = None
) -> Iterator[tuple[Path, R]]:
    """The files that hold such a record and pass the check, each with its record; others are passed over.

    A file that is no JSON, or cannot be read, is named once.
    """
    for path in paths:
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            console.say_once(f"Passed over: {error}")
            continue
        try:
            record = model.parse(data, str(path))
            if check:
                check(record)
        except ValueError:
            continue
        yield path, record


# ---------------------------------------------------------------------------------------------- Fig. 1


def _family_costs(profile: Profile) -> Iterator[FamilyCost]:
    """Fig. 1: the paper's two families, and the profile's own where it is another."""
    names = [*COMPARED, *([profile.family] if profile.family not in COMPARED else [])]
    for name in names:
        with suppress(ValueError):  # a folder that is no longer where it was profiled
            yield from _compared(name) if name in COMPARED else _costs_of(name)


def _costs_of(name: str) -> tuple[FamilyCost, ...]:
    from asdm.models.families import load_family
    from asdm_prof.profiler import costs

    family = load_family(name)
    return tuple(
        FamilyCost(family.name, family.title, row["name"], row["params"], row["macs"], row["calls"])
        for row in costs.component_costs(family)
    )


_compared = cache(_costs_of)
