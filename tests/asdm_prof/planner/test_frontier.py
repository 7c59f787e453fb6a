"""The whole frontier, k plans and the reasons: equal to brute force on small cases, to the MILP on large ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from asdm.plan.edits import RemoveUnit, ReplaceUnit
from asdm.plan.legality import resolve
from asdm_prof.planner import explain, frontier, milp, plan as planner
from asdm_prof.planner.budgets import memory_bytes, parse_budgets
from asdm_prof.planner.choices import Choice
from asdm_prof.planner.problem import Pair, Problem
from asdm_prof.records import Profile
from asdm_prof.renderers import console
from asdm_prof.renderers._format import amount
from benchmarks import baselines
from tests.asdm_prof import synthetic
from tests.asdm_prof.planner.test_planner import small_profile, small_topology, subsets

SHAPES = st.sampled_from([(1,), (2,), (1, 1), (2, 1)])


def small_problem(down: tuple[int, ...], mid: bool, seed: int, pairs: bool, experts: bool = False) -> Problem:
    """Made-up times and damages; with pairs between choices of any kind, of either sign."""
    made = Problem.of(small_profile(small_topology(down, mid), seed, experts))
    if not pairs:
        return made
    rng, n = np.random.default_rng(seed), len(made.choices)
    couples = [
        (i, j) for i in range(n) for j in range(i + 1, n) if not made.choices[i].touches & made.choices[j].touches
    ]
    picks = rng.permutation(len(couples))[:6]
    mean = float(np.mean([choice.damage for choice in made.choices]))
    return replace(made, pairs=tuple(Pair(*couples[k], float(rng.normal() * mean / 2)) for k in picks))


def every_plan(made: Problem) -> list[tuple[float, float]]:
    """(saving, damage) of every legal plan."""
    return [(saving, damage) for saving, damage, _ in every_student(made)]


def every_student(made: Problem) -> list[tuple[float, float, object]]:
    """(saving, damage, what is left of the teacher) of every legal plan."""
    plans = []
    places = {id(choice): i for i, choice in enumerate(made.choices)}
    for subset in subsets(list(made.choices)):
        chosen = [places[id(choice)] for choice in subset]
        if any(host in chosen and not {*needs} & {*chosen} for host, needs in made.hosts):
            continue
        if sum(len([i for i in chosen if i in sets]) > 1 for sets in made.layer_sets.values()):
            continue
        try:
            left = student(made, chosen)
        except ValueError:
            continue
        plans.append((sum(choice.saving for choice in subset), made.damage(chosen), left))
    return plans


def student(made: Problem, chosen: Sequence[int]) -> object:
    """What tells students apart, however their plan is written."""
    left = resolve(made.profile.topology, made.edits(chosen))
    return frozenset(left.gone), frozenset(map(str, left.replacements))


def undominated(plans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    best, found = np.inf, []
    for saving, damage in sorted(plans, key=lambda plan: (-round(plan[0], 12), plan[1])):
        if damage < best - 1e-13:
            best = damage
            found.append((saving, damage))
    return found[::-1]


def points_of(made: Problem, solutions: list[milp.Solution]) -> list[tuple[float, float]]:
    return [(sum(made.choices[i].saving for i in one.chosen), one.damage) for one in solutions]


@settings(max_examples=10, deadline=None)
@given(down=SHAPES, mid=st.booleans(), seed=st.integers(0, 10**6), pairs=st.booleans())
def test_the_frontier_equals_brute_force(down: tuple[int, ...], mid: bool, seed: int, pairs: bool) -> None:
    made = small_problem(down, mid, seed, pairs)
    found, expected = points_of(made, frontier.exact_frontier(made)), undominated(every_plan(made))
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-12)


@settings(max_examples=4, deadline=None)
@given(down=st.sampled_from([(1,), (1, 1)]), mid=st.booleans(), seed=st.integers(0, 10**6))
def test_the_frontier_with_experts_equals_brute_force(down: tuple[int, ...], mid: bool, seed: int) -> None:
    made = small_problem(down, mid, seed, pairs=False, experts=True)
    assert made.hosts
    found, expected = points_of(made, frontier.exact_frontier(made)), undominated(every_plan(made))
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-12)


@settings(max_examples=8, deadline=None)
@given(
    down=SHAPES, mid=st.booleans(), seed=st.integers(0, 10**6), pairs=st.booleans(), ratio=st.floats(0.4, 0.95)
)  # fmt: skip
def test_the_k_best_equal_brute_force(down: tuple[int, ...], mid: bool, seed: int, pairs: bool, ratio: float) -> None:
    made = small_problem(down, mid, seed, pairs)
    least: dict[object, float] = {}
    for saving, damage, left in every_student(made):
        if saving >= 1 - ratio - 1e-9:
            least[left] = min(least.get(left, np.inf), damage)
    expected = sorted(least.values())[:5]
    if not expected:
        with pytest.raises(planner.Infeasible):
            frontier.k_plans(made, {"latency": ratio}, 0.0, 5)
        return
    found = frontier.k_plans(made, {"latency": ratio}, 0.0, 5)
    assert [one.damage for one in found] == pytest.approx(expected, abs=1e-10)
    assert len({one.chosen for one in found}) == len(found)


def with_options(made: Problem, more: int, seed: int) -> Problem:
    """`more` further options of every unit, some of which others beat, some of which are alike, some slower."""
    rng, extra = np.random.default_rng(seed), []
    for unit in made.profile.units:
        for n in range(more):
            edit = ReplaceUnit(unit=unit.fqn, with_="low_rank", options={"rank": n})
            share, damage = rng.integers(-1, 5) / 5 * unit.share.median, float(rng.integers(1, 4)) / 10
            extra.append(Choice((edit,), frozenset([unit.fqn]), float(share), damage, *rng.uniform(0, 0.05, 2)))
    return replace(made, choices=(*made.choices, *extra))


@settings(max_examples=12, deadline=None)
@given(mid=st.booleans(), seed=st.integers(0, 10**6), ratio=st.floats(0.4, 0.95), pairs=st.booleans())
def test_with_many_options_a_unit_all_of_it_equals_brute_force(mid: bool, seed: int, ratio: float, pairs: bool) -> None:
    """Options that others of their unit dominate are left out of the search, and nothing is lost by it."""
    made = with_options(small_problem((1,), mid, seed, pairs), 4, seed)
    plans = every_student(made)
    found = points_of(made, frontier.exact_frontier(made))
    assert np.array(found) == pytest.approx(np.array(undominated([plan[:2] for plan in plans])), abs=1e-12)
    least: dict[object, float] = {}
    for saving, damage, left in plans:
        if saving >= 1 - ratio - 1e-9:
            least[left] = min(least.get(left, np.inf), damage)
    if least:
        best = frontier.k_plans(made, {"latency": ratio}, 0.0, 6)
        assert [one.damage for one in best] == pytest.approx(sorted(least.values())[:6], abs=1e-9)
        assert planner.solve(made, {"latency": ratio}).damage == pytest.approx(best[0].damage, abs=1e-9)


def test_dominated_options_are_those_that_another_of_the_unit_beats_in_every_budget() -> None:
    made = with_options(small_problem((1,), False, 1, pairs=False), 5, 1)
    for budgets in (["latency"], ["latency", "macs", "params"]):
        for i in made.dominated(budgets):
            own, fields = made.choices[i], [{"latency": "saving"}.get(name, name) for name in budgets]
            assert any(
                other.touches == own.touches
                and other.damage <= own.damage
                and all(getattr(other, name) >= getattr(own, name) for name in fields)
                for j, other in enumerate(made.choices)
                if j not in made.dominated(budgets)
            )
    assert 0 < len(made.dominated(["latency", "macs"])) < len(made.dominated(["latency"]))


# ---------------------------------------------------------------------------------------------- at full size


def four_options() -> Problem:
    """SD1.5 with four options for each of its 38 units: keep it and three others at made-up prices, and layers."""
    base = synthetic.profile()
    made = Problem.of(base)
    rng = np.random.default_rng(0)
    found = [choice for choice in made.choices if choice.edit.op in ("remove_layer", "remove_block")]
    for unit in base.units:
        for k in range(3):
            share = unit.share.median * float(rng.uniform(0.1, 1.0))
            edit = RemoveUnit(unit=unit.fqn) if k == 0 else ReplaceUnit(unit=unit.fqn, with_=f"option {k}")
            touches = frozenset([unit.fqn])
            found.append(Choice((edit,), touches, share, float(share * rng.lognormal()), share, share))
    return replace(made, choices=tuple(found), hosts=(), experts=())


def test_the_frontier_equals_the_milp_at_full_size() -> None:
    made = four_options()
    points = frontier.exact_frontier(made)
    savings = np.array([saving for saving, _ in points_of(made, points)])
    for ratio in (0.97, 0.9, 0.75, 0.6, 0.45):
        at = int(np.searchsorted(savings, 1 - ratio - 1e-12))
        solved = planner.solve(made, {"latency": ratio})
        assert points[at].damage == pytest.approx(solved.damage, rel=1e-9)
        assert solved.gap == 0
    assert points[0].chosen == ()
    damages = [point.damage for point in points]
    assert damages == sorted(damages)
    assert (np.diff(savings) > 0).all()


@pytest.mark.serial
def test_frontier_ten_best_and_a_plan_take_two_seconds() -> None:
    made = four_options()
    began = time.process_time()
    points = frontier.exact_frontier(made)
    best = frontier.k_plans(made, {"latency": 0.75}, 0.0, 10)
    solved = planner.solve(made, {"latency": 0.75})
    seconds = time.process_time() - began
    assert len(points) > 500
    assert solved.damage == pytest.approx(best[0].damage)
    assert seconds < 2


@pytest.mark.parametrize(("ratio", "k", "apart"), [(0.7, 40, 1), (0.5, 6, 3)])
def test_no_student_is_there_twice(ratio: float, k: int, apart: int) -> None:
    """The middle block may go whole or unit by unit, which looks like three choices and is the same student."""
    made = Problem.of(synthetic.profile())
    found = frontier.k_plans(made, {"latency": ratio}, 0.0, k, apart)
    assert len({student(made, one.chosen) for one in found}) == len(found) == k


def test_unlike_plans_are_apart_and_the_first_is_the_best() -> None:
    made = Problem.of(synthetic.profile())
    found = frontier.k_plans(made, {"latency": 0.8}, 0.0, 4, apart=4)
    assert found[0].damage == pytest.approx(planner.solve(made, {"latency": 0.8}).damage)
    chosen = [set(one.chosen) for one in found]
    assert all(len(a ^ b) >= 4 for i, a in enumerate(chosen) for b in chosen[:i])
    assert [one.damage for one in found] == sorted(one.damage for one in found)


# ---------------------------------------------------------------------------------------------- several budgets


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6), latency=st.floats(0.4, 1.0), params=st.floats(0.4, 1.0), macs=st.floats(0.4, 1.0)
)  # fmt: skip
@example(seed=0, latency=1.0, params=1.0, macs=0.5)  # MACs that hardly any choice saves
def test_several_budgets_equal_brute_force(seed: int, latency: float, params: float, macs: float) -> None:
    made = small_problem((2, 1), True, seed, pairs=False)
    budgets = {"latency": latency, "params": params, "macs": macs}
    within = []
    places = {id(choice): i for i, choice in enumerate(made.choices)}
    for subset in subsets(list(made.choices)):
        sums = {"latency": "saving", "params": "params", "macs": "macs"}
        if any(sum(getattr(c, sums[name]) for c in subset) < 1 - share - 1e-9 for name, share in budgets.items()):
            continue
        chosen = [places[id(choice)] for choice in subset]
        try:
            resolve(made.profile.topology, made.edits(chosen))
        except ValueError:
            continue
        within.append(made.damage(chosen))
    if not within:
        with pytest.raises(planner.Infeasible) as caught:
            planner.solve(made, budgets)
        eased = {name: min(1.0, share + 1e-9) for name, share in caught.value.relaxed.items()}
        planner.solve(made, eased)  # what is said to be the cheapest relaxation does it
        assert sum(eased.values()) > sum(budgets.values())
        return
    assert planner.solve(made, budgets).damage == pytest.approx(min(within), abs=1e-10)


def test_a_memory_budget_counts_weights_and_the_largest_activations() -> None:
    profile = synthetic.profile()
    made, whole = Problem.of(profile), memory_bytes(profile)
    assert whole == 4 * 859520964 + max(part.peak_memory_bytes for part in profile.parts)
    share = 0.9
    solved = planner.solve(made, {"memory": share})
    gone = frozenset(fqn for edit in [resolve(profile.topology, made.edits(solved.chosen))] for fqn in edit.gone)
    params = sum(made.choices[i].params for i in solved.chosen)
    assert memory_bytes(profile, params, gone) <= share * whole * (1 + 1e-9)
    assert params > 0.05


@pytest.mark.parametrize(
    ("name", "text", "share"),
    [("params", "80%", 0.8), ("params", "0.5", 0.5), ("params", "430M", 430e6 / 859520964), ("memory", "1GiB", None)],
)
def test_budgets_of_other_kinds_are_read(name: str, text: str, share: float | None) -> None:
    profile = synthetic.profile()
    found = parse_budgets({name: text}, profile)[name]
    assert found == pytest.approx(share if share is not None else 2**30 / memory_bytes(profile))


@pytest.mark.parametrize("text", ["900M", "0", "-1", "many", "2", "120%"])
def test_what_is_no_budget_of_parameters_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget for params must be .* the teacher's 859.5M params, got '"):
        parse_budgets({"params": text}, synthetic.profile())


def test_no_budget_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no budget; give one or more of --budget"):
        planner.make_plan(synthetic.profile(), {})


# ---------------------------------------------------------------------------------------------- why


def reasons(profile: Profile, asked: dict[str, str]) -> tuple[planner.PruningPlan, Problem]:
    return explain.with_reasons(profile, planner.make_plan(profile, asked)), Problem.of(profile)


def test_regrets_equal_brute_force() -> None:
    """For every unit, the least damage of all plans in budget that treat it otherwise, less the plan's."""
    made = small_problem((2, 1), True, 5, pairs=True)
    solved = planner.solve(made, {"latency": 0.7})
    found = explain.explain(made, solved, {"latency": 0.7})
    places = {id(choice): i for i, choice in enumerate(made.choices)}
    own = {fqn: i for i in solved.chosen for fqn in made.choices[i].touches}
    best: dict[str, float] = {}
    for subset in subsets(list(made.choices)):
        chosen = [places[id(choice)] for choice in subset]
        if sum(c.saving for c in subset) < 0.3 - 1e-9:
            continue
        try:
            resolve(made.profile.topology, made.edits(chosen))
        except ValueError:
            continue
        theirs = {fqn: i for i in chosen for fqn in made.choices[i].touches}
        for unit in made.profile.topology.units:
            if theirs.get(unit.fqn) != own.get(unit.fqn):
                best[unit.fqn] = min(best.get(unit.fqn, np.inf), made.damage(chosen))
    assert found.regrets
    for regret in found.regrets:
        if regret.damage is None:
            assert regret.unit not in best
        else:
            assert regret.damage == pytest.approx(best[regret.unit] - solved.damage, abs=1e-10)
            assert regret.damage >= -1e-10


def test_the_next_step_is_the_next_plan_of_the_frontier() -> None:
    made = Problem.of(synthetic.profile())
    solved = planner.solve(made, {"latency": 0.8})
    price = explain.explain(made, solved, {"latency": 0.8}).shadow_prices["latency"]
    points = frontier.exact_frontier(made)
    at = next(i for i, one in enumerate(points) if one.damage >= solved.damage * (1 - 1e-9))
    milliseconds = made.profile.whole.latency_s.median * 1e3
    saved = sum(made.choices[i].saving for i in points[at - 1].chosen)
    assert price.per == "ms"
    assert price.next_step == pytest.approx((0.2 - saved) * milliseconds, rel=1e-4)
    assert price.next_saves == pytest.approx(points[at].damage - points[at - 1].damage, rel=1e-6)
    assert price.damage > 0


def test_the_budget_that_binds_is_named() -> None:
    """A loose budget of parameters beside a tight one of latency, and the other way round."""
    profile = synthetic.profile()
    plan, _ = reasons(profile, {"latency": "0.8", "params": "0.999"})
    assert plan.why is not None
    assert plan.why.binding == ("latency",)
    assert plan.sha256() == plan.model_copy(update={"why": None}).sha256()  # the same plan, explained or not
    plan, _ = reasons(profile, {"latency": "0.999", "params": "0.7"})
    assert plan.why is not None
    assert plan.why.binding == ("params",)
    assert plan.why.shadow_prices["params"].per == "M parameters"
    assert plan.budgets == {"params": 0.7}


def test_a_plan_without_reasons_keeps_its_hash() -> None:
    text = planner.make_plan(synthetic.profile(), "0.8").to_json()
    assert not [word for word in ('"why"', '"budgets"', '"damage_sha256"') if word in text]


def test_budgets_that_cannot_meet_say_what_can() -> None:
    made = Problem.of(synthetic.profile())
    with pytest.raises(planner.Infeasible) as caught:
        planner.solve(made, {"latency": 0.2, "params": 0.9})
    assert caught.value.alone["latency"] == pytest.approx(planner.reachable(made, "latency"))
    assert caught.value.relaxed["params"] == pytest.approx(0.9)
    assert caught.value.relaxed["latency"] == pytest.approx(caught.value.lowest)


# ---------------------------------------------------------------------------------------------- baselines


def test_baselines_are_legal_and_within_the_budget() -> None:
    profile = synthetic.profile()
    made = Problem.of(profile)
    plans = baselines.at(made, 0.8, baselines.fixed(profile.topology), 3, seed=0)
    assert {"greedy", "random 1", "random 2", "random 3", "no_attention_at_the_top"} <= plans.keys()
    best = planner.solve(made, {"latency": 0.8}).damage
    for edits in plans.values():
        resolve(profile.topology, edits)
        assert planner.price(profile, edits).ratio <= 0.8 + 1e-9
        chosen = made.chosen(edits)
        assert chosen is not None
        assert made.damage(chosen) >= best - 1e-12


def test_ssd_like_leaves_one_transformer_a_block_where_maps_are_small() -> None:
    shape = synthetic.profile().topology
    left = resolve(shape, baselines.ssd_like(shape)).gone
    assert sorted(left) == [
        "down_blocks.2.attentions.1", "mid_block.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.attentions.2"
    ]  # fmt: skip


def test_no_attention_at_the_top_is_snapfusions() -> None:
    edits = baselines.no_attention_at_the_top(synthetic.profile().topology)
    blocks = [edit.unit.rpartition(".attentions")[0] for edit in edits]
    assert blocks == ["down_blocks.0"] * 2 + ["up_blocks.3"] * 3


# ---------------------------------------------------------------------------------------------- what people read


def test_the_frontier_as_a_record_is_what_its_plans_are() -> None:
    profile, damage = synthetic.profile(), synthetic.damage()
    found = frontier.make_frontier(profile, damage, asked={"latency": "0.8"}, k=3, diverse=2, apart=4)
    assert found.complete
    assert found.damage_sha256 == damage.sha256()
    for point in (*found.points, *found.best, *found.diverse):
        resolve(profile.topology, point.edits)
        assert point.latency_s == pytest.approx(planner.price(profile, point.edits).latency_s)
    plan = planner.make_plan(profile, "0.8", damage=damage)
    assert plan.proof is not None
    assert found.best[0].damage == pytest.approx(plan.proof.damage)
    assert frontier.make_frontier(profile, damage).to_json() == frontier.make_frontier(profile, damage).to_json()


def test_under_other_budgets_every_plan_of_the_frontier_keeps_them() -> None:
    found = frontier.make_frontier(synthetic.profile("mini"), asked={"params": "0.9"})
    assert not found.complete
    assert len(found.points) > 5
    assert all(point.params <= 0.9 + 1e-9 for point in found.points)


def test_the_console_tells_damage_frontier_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    damage, profile = synthetic.damage(), synthetic.profile()
    console.print_record(damage, console.stdout_console())
    console.print_record(synthetic.report().frontier, console.stdout_console())
    text = capsys.readouterr().out
    for one in damage.edits:
        assert amount(one.damage.value) in text
    assert "60.0 that a plain loop runs (2.00×" in " ".join(text.split())
    assert "Different from each other" in text
    plan, _ = reasons(profile, {"latency": "0.8"})
    lines = console.plan_lines(plan, profile)
    assert "Why: latency binds." in lines
    assert [line for line in lines if line.startswith("  latency: ") and "damage per ms" in line]
