"""Damage as a budget: the fastest plan within it, and a refusal of plans that do more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asdm_prof.planner.frontier import exact_frontier, fastest_within
from asdm_prof.planner.plan import TooMuchDamage, parse_damage, prepare
from asdm_prof.planner.problem import Problem
from tests.asdm_prof import synthetic


def test_the_fastest_plan_within_a_damage_is_found(run: Any, tmp_path: Path) -> None:
    profile = synthetic.profile()
    problem = Problem.of(profile)
    pruned = [solution for solution in exact_frontier(problem) if solution.chosen]
    most = sorted(solution.damage for solution in pruned)[len(pruned) // 2]
    profile.save(tmp_path / "profile.json")
    done = run("asdm-prof", "plan", "--profile", "profile.json", "--max-damage", repr(most), "--no-why", "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["proof"]["damage"] <= most
    allowed = [solution for solution in pruned if solution.damage <= most]
    fastest = min(1 - sum(problem.choices[i].saving for i in solution.chosen) for solution in allowed)
    assert plan["predicted"]["ratio"] == pytest.approx(fastest, abs=1e-6)


def test_a_plan_that_does_more_damage_is_refused(run: Any, tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile.json")
    line = ("asdm-prof", "plan", "--profile", "profile.json", "--budget", "0.8", "--max-damage")
    done = run(*line, "1e-9", "-o", "plan.json")
    assert done.code == 3
    assert "the least damage within the budgets is" in done.err
    assert "more than the 1e-09 allowed; raise --max-damage or a budget" in done.err
    assert not (tmp_path / "plan.json").exists()
    assert run(*line, "1000", "-o", "plan.json").code == 0
    with pytest.raises(TooMuchDamage, match="more than the 1e-12 allowed"):
        fastest_within(synthetic.profile(), 1e-12)


def test_a_plan_that_may_not_be_faster_is_not_offered() -> None:
    """Of the plans that do little damage some save less than what the prediction may be wrong by."""
    profile = synthetic.profile()
    problem = Problem.of(profile)
    saved = {sum(problem.choices[i].saving for i in one.chosen): one.damage
             for one in exact_frontier(problem) if one.chosen}  # fmt: skip
    slowest = min(saved)
    _, _, below = prepare(profile, {"latency": "1.0"}, 0.99, None, None, ())
    assert slowest < below, "or this tests nothing"
    with pytest.raises(TooMuchDamage, match="the least damage within the budgets is"):
        fastest_within(profile, saved[slowest], 0.99)
    surely = min(damage for saving, damage in saved.items() if saving >= below)
    assert 0 < float(fastest_within(profile, surely, 0.99)) <= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lots", "--max-damage must be a number of at least 0, or a percentage, got 'lots'"),
        ("-1", "got '-1'"),
        ("5%", r"--max-damage 5% is a share of the teacher's output; name a damage\.json"),
    ],
)
def test_what_is_no_damage_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_damage(text, None)


def test_a_share_is_of_the_teachers_output() -> None:
    damage = synthetic.damage()
    assert parse_damage("5%", damage) == pytest.approx(0.05 * damage.teacher_power)
    assert parse_damage("0.25", damage) == 0.25
