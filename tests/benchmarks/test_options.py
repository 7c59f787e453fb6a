"""All options against the edits from before: what each replacement is worth, and what the tables say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asdm.plan.edits import RemoveUnit, ReplaceUnit
from asdm.records.measurement import Estimate
from asdm_prof.planner.choices import Choice, edits_key
from asdm_prof.planner.problem import Problem
from asdm_prof.records import Interval
from benchmarks.options import Judged, Options, OptionsRow, figure_of, rows_of, share_rows, shares_of, with_dropped
from benchmarks.pruning import Pruned, Pruning, row
from tests.asdm_prof import synthetic
from tests.asdm_prof.planner.test_planner import small_profile, small_topology


def problem() -> Problem:
    """One unit that may go, become useful, or become useless; the useful option costs half of what removal does."""
    profile = small_profile(small_topology((1,), False), 0)
    unit = profile.units[0].fqn
    touches = frozenset([unit])
    made = [
        Choice((RemoveUnit(unit=unit),), touches, 0.7, 1.0),
        Choice((ReplaceUnit(unit=unit, with_="useful"),), touches, 0.6, 0.5),
        Choice((ReplaceUnit(unit=unit, with_="useless", options={"keep": 0.5}),), touches, 0.55, 0.8),
    ]
    return replace(Problem.of(profile), choices=tuple(made), hosts=(), experts=())


def test_a_replacement_is_worth_what_plans_lose_without_it() -> None:
    useful, *others = shares_of(problem(), [(ReplaceUnit(unit="x", with_="useful"),)])
    useless = next(one for one in others if one.replacement == "useless")
    assert (useful.replacement, useful.frontier_plans, useful.best_plans) == ("useful", 0.5, 1)
    assert (useless.replacement, useless.frontier_plans, useless.best_plans) == ("useless", 0.0, 0)
    assert useful.without["0.5"] == pytest.approx(0.8 / 0.5)
    assert useful.without["0.4"] == pytest.approx(1.0 / 0.5)
    assert useless.without["0.5"] == 1.0
    out = next(one for one in others if one.replacement == "gri_attention")  # timed, and measured in no unit
    assert (out.units, out.frontier_plans, {*out.without.values()}) == (0, 0.0, {1.0})


def test_the_planner_from_before_has_what_the_race_of_all_options_dropped() -> None:
    damage = synthetic.damage_of(small_profile(small_topology((1,), False), 0))
    raced = damage.model_copy(update={"edits": damage.edits[1:], "dropped": damage.edits[:1]})
    assert {edits_key(one.edits) for one in with_dropped(raced).edits} == {edits_key(one.edits) for one in damage.edits}


def test_tables_and_figure_hold_every_budget() -> None:
    def judged(name: str, value: float) -> Judged:
        damage = Interval(value=value, low=0.9 * value, high=1.1 * value)
        return Judged(name=name, ratio=0.5, predicted=None, damage=damage, edits=())

    rows = (OptionsRow(budget=0.5, new=judged("new", 0.1), before=judged("before", 0.4),
                       baselines=(judged("greedy", 0.3), judged("bk_sdm_base", 0.7))),
            OptionsRow(budget=0.4, new=judged("new", 0.2), before=None, baselines=()))  # fmt: skip
    result = Options(
        created_utc="", command="", family="mini", weights_sha256="0", profile_sha256="0", damage_sha256="0",
        before_sha256="0", units_sha256=None, candidates=1, prompts=2, timesteps=(1,), choices=3, undominated=2,
        rows=rows, shares=tuple(shares_of(problem(), [])), seconds=1.0, environment=synthetic.ENVIRONMENT,
    )  # fmt: skip
    first, second = rows_of(result)
    assert (first["all / before"], first["best baseline"][:6]) == ("0.25", "greedy")
    assert (second["before"], second["best baseline"]) == ("not reachable", "")
    assert {row["replacement"] for row in share_rows(result.shares, 2)} >= {"useful", "useless", "gri_attention"}
    assert len(figure_of(result).axes[0].lines) == 3
    drawn = figure_of(result.model_copy(update={"hand_made": (judged("a_sdm", 0.6),)})).axes[0]
    assert (drawn.lines[3].get_xydata().tolist(), drawn.texts[0].get_text()) == ([[0.5, 0.6]], "a_sdm")
    ratio = Estimate(median=0.8, low=0.7, high=0.9)
    narrow = Pruned(importance="magnitude", everywhere_alike=True, channels=0.3, params_ratio=0.5, macs_ratio=0.5,
                    latency_ratio=ratio, damage=rows[0].new.damage)  # fmt: skip
    whole = Pruning(
        created_utc="", command="", family="mini", dtype="fp32", device="cpu", threads=1, weights_sha256="0", prompts=2,
        timesteps=(1,), torch_pruning="1.6", networks=(narrow,), environment=synthetic.ENVIRONMENT,
    )  # fmt: skip
    assert figure_of(result, whole).axes[0].lines[3].get_xydata().tolist() == [[0.8, 0.1]]
    assert [one["best pruned whole"] for one in rows_of(result, whole)] == ["not reachable"] * 2
    faster = narrow.model_copy(update={"latency_ratio": Estimate(median=0.45, low=0.4, high=0.5)})
    assert rows_of(result, whole.model_copy(update={"networks": (narrow, faster)}))[0]["best pruned whole"] == (
        "magnitude 0.1 [0.09, 0.11]"
    )
    assert row(narrow)["channels"] == "−30% of every group"
