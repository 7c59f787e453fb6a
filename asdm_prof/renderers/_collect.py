"""Find the files that belong to one report: the plan made from a profile, and the benchmarks of its students."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from asdm.models.families import load_family
from asdm.plan.edits import PruningPlan
from asdm.records.bench import BenchResult
from asdm.utils import io
from asdm_prof.analysis import structure
from asdm_prof.planner.plan import check_damage
from asdm_prof.profiler import costs
from asdm_prof.records import Budgets, Comparison, Damage, Frontier, Profile, Proof, Search, TrainingLog, Validation
from asdm_prof.renderers import FamilyCost, Report

R = TypeVar("R", bound=io.Record)
COMPARED = ("sd15", "sd21_base")  # Fig. 1 of the paper: Stable Diffusion v1 and v2


def report(
    profile: Profile,
    path: Path,
    plan: Path | None = None,
    benches: Sequence[Path] | None = None,
    damage: Path | None = None,
    frontier: Path | None = None,
    log: Path | None = None,
    beside: Path | None = None,
) -> Report:
    """A profile with what followed from it; files are matched by the hashes in them.

    Raises ValueError for a named file that belongs to another teacher.
    """
    sources = {"profile": str(path)}
    found_plan = _plan(profile, plan, path.parent, sources)
    found_benches = _benches(profile, found_plan, benches, path.parent, sources)
    sha256 = profile.sha256()

    def ours(found: Any) -> bool:
        return found.profile_sha256 == sha256

    validation = _first("validation", "validate*.json", Validation, path.parent, sources, ours)
    comparison = _first("comparison", "compare*.json", Comparison, path.parent, sources,
                        lambda found: sha256 in [one.sha256 for one in found.profiles])  # fmt: skip
    found_damage = _named_or_first("damage", damage, Damage, path.parent, sources, partial(check_damage, profile))
    found_frontier = _named_or_first("frontier", frontier, Frontier, path.parent, sources,
                                     partial(_check_frontier, profile))  # fmt: skip
    budgets = _first("budgets", "budgets*.json", Budgets, path.parent, sources, ours)
    proof = _first("proof", "proof*.json", Proof, path.parent, sources, ours)
    search = _first("search", "search*.json", Search, path.parent, sources, ours)
    if log is not None:
        sources["log"] = str(log)
    other = Profile.load(io.find_input(beside)) if beside else None
    if other:
        structure.rows(profile, other)  # raises where the blocks are not the same
        sources["beside"] = str(beside)
    return Report(
        profile=profile,
        plan=found_plan,
        benches=tuple(found_benches),
        sources=sources,
        family_costs=tuple(_family_costs(profile)),
        validation=validation,
        comparison=comparison,
        damage=found_damage,
        frontier=found_frontier,
        budgets=budgets,
        log=TrainingLog.load(log) if log else None,
        beside=other,
        proof=proof,
        search=search,
    )


def _named_or_first(
    what: str, named: Path | None, model: type[R], folder: Path, sources: dict[str, str], check: Callable[[R], None]
) -> R | None:
    """The file that was named, or else the newest that belongs to the profile; `check` raises where one does not."""
    if named is None:
        return _first(what, f"{what}*.json", model, folder, sources, lambda found: _passes(check, found))
    found = model.load(io.find_input(named))
    try:
        check(found)
    except ValueError as error:
        raise ValueError(f"{named}: {error}") from None
    sources[what] = str(named)
    return found


def _passes(check: Callable[[R], None], found: R) -> bool:
    try:
        check(found)
    except ValueError:
        return False
    return True


def _check_frontier(profile: Profile, frontier: Frontier) -> None:
    """A frontier is priced by one profile; raises ValueError where it is another's."""
    if frontier.profile_sha256 != profile.sha256():
        raise ValueError(
            f"the frontier was made from another profile ({frontier.family}, {frontier.profile_sha256[:12]}) than this "
            f"one ({profile.family}, {profile.sha256()[:12]}); `asdm-prof frontier --profile` makes this one's."
        )


def _first(
    what: str, pattern: str, model: type[R], folder: Path, sources: dict[str, str], fits: Callable[[R], bool]
) -> R | None:
    """The newest file of a kind that belongs to the profile."""
    for candidate in _newest_first(folder, pattern):
        found = _readable(candidate, model)
        if found and fits(found):
            sources[what] = str(candidate)
            return found
    return None


def newest_profile(config_sha256: str, **wanted: str | int | None) -> tuple[Profile, Path] | None:
    """The profile of one model under `reports/` that was last written, taken with the settings that are not None."""
    for path in _newest_first(io.REPORTS, "profile.json"):
        found = _readable(path, Profile)
        if found and found.config_sha256 == config_sha256 and not unlike(found, **wanted):
            return found, path
    return None


def unlike(profile: Profile, **wanted: str | int | None) -> list[str]:
    """The wanted settings, None standing for any, that a profile was not taken with."""
    return [name for name, value in wanted.items() if value is not None and getattr(profile, name) != value]


def _plan(profile: Profile, named: Path | None, folder: Path, sources: dict[str, str]) -> PruningPlan | None:
    if named is not None:
        plan = PruningPlan.load(io.find_input(named))
        if plan.teacher_config_sha256 not in (None, profile.config_sha256):
            raise ValueError(
                f"{named} was made for another teacher ({plan.family}) than the profile ({profile.family})."
            )
        sources["plan"] = str(named)
        return plan
    sha256 = profile.sha256()
    for candidate in _newest_first(folder, "plan*.json"):
        found = _readable(candidate, PruningPlan)
        if found and found.profile_sha256 == sha256:
            sources["plan"] = str(candidate)
            return found
    return None


def _benches(
    profile: Profile, plan: PruningPlan | None, named: Sequence[Path] | None, folder: Path, sources: dict[str, str]
) -> list[BenchResult]:
    found: list[BenchResult] = []
    for candidate in named or _newest_first(folder, "bench*.json"):
        bench = BenchResult.load(candidate) if named else _readable(candidate, BenchResult)
        if bench is None:
            continue
        same = bench.teacher_config_sha256 == profile.config_sha256
        if named and not same:
            raise ValueError(
                f"{candidate} measured another teacher ({bench.family}) than the profile ({profile.family})."
            )
        if named or (same and (candidate.parent == folder or _holds(bench, plan))):
            sources[f"bench {len(found) + 1}" if found else "bench"] = str(candidate)
            found.append(bench)
    return found


def _holds(bench: BenchResult, plan: PruningPlan | None) -> bool:
    return plan is not None and any(student.plan_sha256 == plan.sha256() for student in bench.students)


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    """Files beside the profile, then those of all runs, each group newest first."""

    def ordered(paths: Iterable[Path]) -> list[Path]:
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    beside = ordered(folder.glob(pattern))
    return beside + [path for path in ordered(io.REPORTS.glob(f"*/{pattern}")) if path not in beside]


def _readable(path: Path, model: type[R]) -> R | None:
    try:
        return model.load(path)
    except ValueError:
        return None


def _family_costs(profile: Profile) -> Iterable[FamilyCost]:
    """Fig. 1: the paper's two families, and the profile's own where it is another."""
    names = [*COMPARED, *([profile.family] if profile.family not in COMPARED else [])]
    for name in names:
        with suppress(ValueError):  # a folder that is no longer where it was profiled
            yield from _compared(name) if name in COMPARED else _costs_of(name)


def _costs_of(name: str) -> tuple[FamilyCost, ...]:
    family = load_family(name)
    return tuple(
        FamilyCost(family.name, family.title, row["name"], row["params"], row["macs"], row["calls"])
        for row in costs.component_costs(family)
    )


_compared = cache(_costs_of)


def of_records(profile: Profile) -> Report:
    """A profile by itself, with Fig. 1."""
    return Report(profile, family_costs=tuple(_family_costs(profile)))
