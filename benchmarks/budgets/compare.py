"""Our plan against the baselines at every latency budget, on measured joint damage.

Ours: the few best plans by prediction are built and measured on the calibration data, and the one of least damage there
is taken, because a predicted damage is a sum of parts and a student's is not quite. Then all plans are measured on
other prompts, from a split that none was chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asdm.measure import clocks, machine, statistics
from asdm.models.families import load_family
from asdm.plan.edits import AnyEdit
from asdm.utils import registry
from asdm.utils.progress import Tell
from asdm.utils.record import utc_now
from asdm_prof.planner import plan
from asdm_prof.planner.choices import edits_key
from asdm_prof.planner.frontier import k_plans
from asdm_prof.planner.problem import Problem
from asdm_prof.records import Damage, Interval, Profile
from asdm_prof.sensitivity import measure as sensitivity
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks import baselines
from benchmarks.budgets.records import BudgetRow, Budgets, Contestant

JUDGED_ON = "held_out"
RANDOM = 5  # random plans at each budget
RATIOS = tuple(round(0.95 - 0.05 * i, 2) for i in range(10))
Edits = tuple[AnyEdit, ...]


def compare(
    profile: Profile, damage: Damage, settings: SensitivitySettings, best: int, folder: Path, tell: Tell, command: str
) -> Budgets:
    """Everyone within each of `RATIOS` of the teacher's latency, by the profile; unreachable ones are left out.

    `settings` are those that `damage` was measured with; the `best` plans by prediction are candidates. Unfinished
    measurements are kept in `folder` and continued.
    """
    clock = clocks.HostClock()
    began = clock.mark()
    plan.check_damage(profile, damage)
    problem = Problem.of(profile, damage=damage)
    reached = [ratio for ratio in RATIOS if ratio >= plan.reachable(problem, "latency")]
    ours = {
        ratio: [problem.edits(one.chosen) for one in k_plans(problem, {"latency": ratio}, 0.0, best)]
        for ratio in reached
    }
    chosen = _chosen(ours, damage, settings, folder, tell)
    fixed = baselines.fixed(profile.topology)
    others = {ratio: baselines.at(problem, ratio, fixed, RANDOM, settings.seed) for ratio in reached}
    everyone = [*chosen.values(), *(edits for named in others.values() for edits in named.values())]
    pictures = registry.load("asdm.data.datasets", damage.data).open_data(JUDGED_ON, damage.size)
    judging = replace(settings, split=JUDGED_ON, prompts=min(settings.prompts, len(pictures)))
    errors = _measured(damage.family, everyone, judging, folder / "judging.run", tell)
    rows = [_row(problem, ratio, chosen[ratio], others[ratio], errors) for ratio in reached]
    return Budgets(
        created_utc=utc_now(),
        command=command,
        family=damage.family,
        weights_sha256=damage.weights_sha256,
        profile_sha256=profile.sha256(),
        damage_sha256=damage.sha256(),
        candidates=best,
        split=judging.split,
        prompts=judging.prompts,
        timesteps=damage.timesteps,
        rows=tuple(rows),
        seconds=clock.seconds(began, clock.mark()),
        environment=machine.environment(settings.device, damage.threads),
    )


def _measured(
    family: str, plans: Sequence[Edits], settings: SensitivitySettings, run_file: Path, tell: Tell
) -> dict[frozenset[str], np.ndarray]:
    """Mean errors by prompt of each plan, by its key; equal plans are measured once."""
    unique = {edits_key(edits): edits for edits in plans}
    measured = sensitivity.measure_damage(load_family(family), list(unique.values()), settings, run_file, tell)
    run_file.unlink(missing_ok=True)
    return {key: samples.mean(axis=1) for key, samples in zip(unique, measured.samples, strict=True)}


def _chosen(
    ours: dict[float, list[Edits]], damage: Damage, settings: SensitivitySettings, folder: Path, tell: Tell
) -> dict[float, Edits]:
    """At each budget, the plan of least damage among its candidates and those of tighter budgets."""
    candidates = [edits for plans in ours.values() for edits in plans]
    errors = _measured(damage.family, candidates, settings, folder / "choosing.run", tell)
    best: dict[float, Edits] = {}
    for ratio in sorted(ours):
        within = [edits for tighter in ours if tighter <= ratio for edits in ours[tighter]]
        best[ratio] = min(within, key=lambda edits: errors[edits_key(edits)].mean())
    return best


def _row(
    problem: Problem, ratio: float, ours: Edits, others: dict[str, Edits], errors: dict[frozenset[str], np.ndarray]
) -> BudgetRow:
    named = [("ours", ours), *others.items()]
    contestants = [_contestant(problem, name, edits, errors[edits_key(edits)]) for name, edits in named]
    contestants.sort(key=lambda one: (one.damage.value, not one.ours, one.name))
    rivals = [one for one in contestants if not one.ours and edits_key(one.edits) != edits_key(ours)]
    ahead = None
    if rivals:
        gaps = statistics.estimate((np.array(rivals[0].by_prompt) - errors[edits_key(ours)]).tolist(), np.mean)
        ahead = Interval(value=gaps.median, low=gaps.low, high=gaps.high)
    return BudgetRow(budget=ratio, contestants=tuple(contestants), ahead=ahead, won=ahead is None or ahead.value > 0)


def _contestant(problem: Problem, name: str, edits: Edits, by_prompt: np.ndarray) -> Contestant:
    parts = problem.chosen(edits)
    return Contestant(
        name=name,
        ours=name == "ours",
        ratio=plan.price(problem.profile, edits).ratio,
        predicted=None if parts is None else problem.damage(parts),
        damage=sensitivity.damage_of(by_prompt[:, None]),
        by_prompt=tuple(by_prompt.tolist()),
        edits=edits,
    )
