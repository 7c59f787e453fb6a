"""The exact plan: equal to brute force on small cases, proved, repeatable, and honest about what cannot be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from asdm.measure.statistics import latency
from asdm.plan.edits import RemoveBlock, RemoveLayer
from asdm.plan.legality import resolve
from asdm.plan.topology import Topology, UnitShape
from asdm.records.measurement import Estimate
from asdm_prof.planner import budgets, plan as planner
from asdm_prof.planner.choices import Choice, make_choices
from asdm_prof.planner.problem import Problem
from asdm_prof.records import OptionRecord, PartRecord, Profile
from tests.asdm_prof import synthetic

Z = 1.6448536269514722  # one-sided 95 %


def small_topology(down: tuple[int, ...], mid: bool) -> Topology:
    """A UNet of `len(down)` levels with `down[i]` layers in its i-th down block, all of 8 channels but the last 16."""
    widths = [8] * (len(down) - 1) + [16] if len(down) > 1 else [8]
    units, blocks, samplers = [], [], {}

    def unit(kind: str, block: str, layer: int, inside: int, outside: int) -> None:
        attribute = "resnets" if kind == "resnet" else "attentions"
        name = f"{block}.{attribute}.{layer}"
        units.append(
            UnitShape(
                fqn=name, label=name, kind=kind, block=block, layer=layer, channels_in=inside, channels_out=outside
            )
        )

    hidden, skips = 8, [8]
    for i, n in enumerate(down):
        block = f"down_blocks.{i}"
        blocks.append(block)
        for layer in range(n):
            unit("resnet", block, layer, hidden, widths[i])
            hidden = widths[i]
            skips.append(hidden)
            if i == 0:
                unit("transformer", block, layer, hidden, hidden)
        if i < len(down) - 1:
            samplers[block] = f"{block}.downsamplers.0"
            skips.append(hidden)
    if mid:
        blocks.append("mid_block")
        unit("resnet", "mid_block", 0, hidden, hidden)
    for i, n in enumerate(reversed(down)):
        block = f"up_blocks.{i}"
        blocks.append(block)
        for layer in range(n + 1):
            unit("resnet", block, layer, hidden + skips.pop(), widths[len(down) - 1 - i])
            hidden = widths[len(down) - 1 - i]
        if i < len(down) - 1:
            samplers[block] = f"{block}.upsamplers.0"
    assert not skips
    return Topology(channels_stem=8, blocks=tuple(blocks), samplers=samplers, units=tuple(units))


def small_profile(shape: Topology, seed: int, experts: bool = False) -> Profile:
    """A profile of made-up times, with a replacement for every Transformer, and with experts for every ResNet."""
    rng = np.random.default_rng(seed)
    names = [u.fqn for u in shape.units] + list(shape.samplers.values()) + ["conv_in", "time_embedding", "conv_out"]
    seconds = {name: float(t) for name, t in zip(names, rng.uniform(0.2, 3.0, len(names)), strict=True)}
    whole = sum(seconds.values())
    kinds = {u.fqn: u for u in shape.units}

    def record(name: str) -> PartRecord:
        unit, share = kinds.get(name), seconds[name] / whole
        return PartRecord(
            fqn=name,
            label=name,
            kind=unit.kind if unit else "glue",
            block=unit.block if unit else "",
            layer=unit.layer if unit else None,
            params=int(rng.integers(1, 1000)),
            linear_macs=1000,
            peak_memory_bytes=0,
            latency_s=latency([seconds[name]] * 3),
            share=Estimate(median=share, low=share * 0.99, high=share * 1.01),
        )

    records = [record(name) for name in names]
    options = [
        OptionRecord(
            unit=r.fqn,
            replacement="gri_attention",
            params=r.params,
            linear_macs=int(rng.integers(100, 1000)),
            latency_s=latency([r.latency_s.median / 2] * 3),
            share=r.share.scaled(float(rng.uniform(0.3, 0.9))),
        )
        for r in records
        if r.kind == "transformer"
    ]
    for r in records if experts else ():
        if r.kind == "resnet":
            share = r.share.scaled(float(rng.uniform(1.0, 1.1)))
            options.append(
                OptionRecord(
                    unit=r.fqn, replacement="cond_conv", params=r.params, latency_s=r.latency_s, share=share,
                    linear_macs=1100,
                )
            )  # fmt: skip
    base = synthetic.profile()
    return base.model_copy(
        update={
            "topology": shape,
            "units": tuple(r for r in records if r.kind != "glue"),
            "glue": tuple(r for r in records if r.kind == "glue"),
            "options": tuple(options),
            "whole": base.whole.model_copy(
                update={
                    "params": sum(r.params for r in records),
                    "latency_s": latency([whole] * 3),
                    "hooked_latency_s": latency([whole] * 3),
                }
            ),
        }
    )


def brute_force(profile: Profile, ratio: float) -> tuple[float, float] | None:
    """(least damage, its greatest saving) over every legal subset of edits, or None where no subset is in budget."""
    found = make_choices(profile)
    needed = 1 - ratio + planner.margin(profile, 0.95)
    best = None
    for subset in subsets(found):
        if sum(c.saving for c in subset) < needed - 1e-12:
            continue
        try:
            resolve(profile.topology, [edit for c in subset for edit in c.edits])
        except ValueError:
            continue
        damage = sum(c.damage for c in subset) - recovered(profile, subset)
        key = (damage, -sum(c.saving for c in subset))
        best = min(best or key, key)
    return best


def recovered(profile: Profile, subset: Sequence[Choice]) -> float:
    """Half of what each pruned 3×3 kernel weighed (twice its parameters), where a neighbour has it as its expert."""
    units = {unit.fqn: unit for unit in profile.topology.units if unit.kind == "resnet"}
    gone = {fqn for c in subset if c.edit.op in ("remove_layer", "remove_unit") for fqn in c.touches}
    hosts = [c.edit.unit for c in subset if c.edit.op == "replace_unit" and c.edit.with_ == "cond_conv"]
    total = 0.0
    for fqn in gone & units.keys():
        kernel_1, kernel_2 = (units[fqn].channels_in, units[fqn].channels_out), (units[fqn].channels_out,) * 2
        beside = [units[host] for host in hosts if units[host].block == units[fqn].block]
        if any((host.channels_in, host.channels_out) == kernel_1 for host in beside):
            total += 9 * kernel_1[0] * kernel_1[1]
        if any((host.channels_out,) * 2 == kernel_2 for host in beside):
            total += 9 * kernel_2[0] * kernel_2[1]
    return total / profile.whole.params


def subsets(found: list[Choice]) -> itertools.chain:
    """Subsets in which no unit is decided on twice; the rest `resolve` judges."""

    def grow(chosen: tuple[Choice, ...], rest: list[Choice]) -> list[tuple[Choice, ...]]:
        if not rest:
            return [chosen]
        without = grow(chosen, rest[1:])
        taken = frozenset().union(*(c.touches for c in chosen))
        return without if rest[0].touches & taken else without + grow((*chosen, rest[0]), rest[1:])

    return itertools.chain(grow((), found))


@settings(max_examples=40, deadline=None)
@given(
    down=st.sampled_from([(1,), (2,), (1, 1), (2, 1), (1, 2)]),
    mid=st.booleans(),
    seed=st.integers(0, 10**6),
    ratio=st.floats(0.35, 0.97),
)
def test_the_plan_equals_brute_force(down: tuple[int, ...], mid: bool, seed: int, ratio: float) -> None:
    profile = small_profile(small_topology(down, mid), seed)
    best = brute_force(profile, ratio)
    if best is None:
        with pytest.raises(planner.Infeasible):
            planner.make_plan(profile, str(ratio))
        return
    plan = planner.make_plan(profile, str(ratio))
    chosen = [c for c in make_choices(profile) if all(edit in plan.edits for edit in c.edits)]
    assert sum(len(c.edits) for c in chosen) == len(plan.edits)
    assert sum(c.damage for c in chosen) == pytest.approx(best[0], abs=1e-12)
    assert sum(c.saving for c in chosen) == pytest.approx(-best[1], abs=1e-9)
    assert plan.proof is not None
    assert plan.proof.gap == 0
    assert plan.proof.bound == pytest.approx(best[0], abs=1e-9)


@example(down=(2,), mid=False, seed=21153, ratio=0.546875)  # damage below 0, and two plans of it
@settings(max_examples=15, deadline=None)
@given(down=st.sampled_from([(1,), (2,)]), mid=st.booleans(), seed=st.integers(0, 10**6), ratio=st.floats(0.35, 0.97))
def test_the_plan_with_experts_equals_brute_force(down: tuple[int, ...], mid: bool, seed: int, ratio: float) -> None:
    profile = small_profile(small_topology(down, mid), seed, experts=True)
    profile = profile.model_copy(update={"whole": profile.whole.model_copy(update={"params": 10**6})})
    best = brute_force(profile, ratio)
    if best is None:
        with pytest.raises(planner.Infeasible):
            planner.make_plan(profile, str(ratio))
        return
    plan = planner.make_plan(profile, str(ratio))
    chosen = [c for c in make_choices(profile) if all(edit in plan.edits for edit in c.edits)]
    assert plan.proof is not None
    assert plan.proof.damage == pytest.approx(best[0], abs=1e-12)
    assert sum(c.damage for c in chosen) - recovered(profile, chosen) == pytest.approx(best[0], abs=1e-12)
    assert sum(c.saving for c in chosen) == pytest.approx(-best[1], abs=1e-9)


def test_without_some_choices_a_problem_keeps_what_the_others_need_and_do_together() -> None:
    problem = Problem.of(small_profile(small_topology((2, 2), False), 0, experts=True))
    assert problem.of_choices(range(len(problem.choices))) == problem
    host, needs = problem.hosts[0]
    left = [i for i in range(len(problem.choices)) if i != needs[0]]
    fewer = problem.of_choices(left)
    chosen = [i for i in left if i == host or i in needs[1:]]
    assert fewer.damage([left.index(i) for i in chosen]) == pytest.approx(problem.damage(chosen))
    assert [left[i] for i in dict(fewer.hosts)[left.index(host)]] == [*needs[1:]]
    without = problem.of_choices([i for i in range(len(problem.choices)) if i not in dict(problem.hosts)])
    assert not without.hosts
    assert not any(experts.takers for experts in without.experts)


def test_experts_come_only_where_a_layer_of_their_block_went(faked: Profile) -> None:
    plan = planner.make_plan(faked, "0.7")
    hosts = [e.unit for e in plan.edits if e.op == "replace_unit" and e.with_ == "cond_conv"]
    pruned = {e.block for e in plan.edits if e.op == "remove_layer"}
    pruned |= {e.unit.rsplit(".", 2)[0] for e in plan.edits if e.op == "remove_unit" and "resnets" in e.unit}
    assert {unit.rsplit(".", 2)[0] for unit in hosts} <= pruned
    tight = planner.make_plan(faked, "0.5")
    assert any(e.op == "replace_unit" and e.with_ == "cond_conv" for e in tight.edits), "a tight budget prunes layers"
    assert planner.price(faked, tight.edits) == tight.predicted


def test_a_removed_layer_takes_its_mirror_along() -> None:
    """Where only layers are worth removing, every down layer in the plan has its up layer in it."""
    profile = synthetic.profile()
    plan = planner.make_plan(profile, "0.45")
    removed = [(e.block, e.layer) for e in plan.edits if isinstance(e, RemoveLayer)]
    assert removed, "a budget this low needs layers to go"
    for block in profile.topology.down_blocks:
        here = sum(b == block for b, _ in removed)
        there = sum(b == profile.topology.mirror(block) for b, _ in removed)
        assert here == there


def test_the_prediction_is_the_teacher_less_what_is_gone() -> None:
    profile = synthetic.profile()
    edits = [RemoveLayer(block="down_blocks.0", layer=1), RemoveLayer(block="up_blocks.3", layer=1)]
    gone = [f"{b}.{kind}.1" for b in ("down_blocks.0", "up_blocks.3") for kind in ("resnets", "attentions")]
    expected = 1 - sum(profile.part(fqn).share.median for fqn in gone)
    assert planner.price(profile, edits).ratio == pytest.approx(expected)


def test_removing_the_deepest_pair_takes_its_samplers_along() -> None:
    profile = synthetic.profile()
    edits = [RemoveBlock(block="mid_block"), RemoveBlock(block="down_blocks.3")]
    gone = [p for p in profile.parts if p.block in ("mid_block", "down_blocks.3", "up_blocks.0")]
    gone.append(profile.part("down_blocks.2.downsamplers.0"))
    assert planner.price(profile, edits).ratio == pytest.approx(1 - sum(p.share.median for p in gone))


def test_a_replacement_without_a_time_is_refused() -> None:
    from asdm.plan.edits import ReplaceUnit

    with pytest.raises(ValueError, match=r"no time for gri_attention in mid_block.attentions.0"):
        planner.price(synthetic.profile(), [ReplaceUnit(unit="mid_block.attentions.0", with_="gri_attention")])


def test_the_same_profile_gives_the_same_bytes() -> None:
    profile = synthetic.profile()
    assert planner.make_plan(profile, "0.8").to_json() == planner.make_plan(profile, "0.8").to_json()


def test_the_plan_stays_below_its_budget_by_the_margin() -> None:
    plan = planner.make_plan(synthetic.profile(), "0.8")
    assert plan.predicted is not None
    assert plan.predicted.ratio <= 0.8 - Z * planner.MODEL_ERROR


def test_the_margin_is_z_sigma() -> None:
    """All unit and option times as sure as can be leaves additivity: 1.645 · 1 %."""
    profile = small_profile(small_topology((2, 1), mid=True), 0)
    sure = {"share": Estimate(median=0.1, low=0.1, high=0.1)}
    profile = profile.model_copy(
        update={
            "units": tuple(u.model_copy(update=sure) for u in profile.units),
            "options": tuple(o.model_copy(update=sure) for o in profile.options),
        }
    )
    assert planner.margin(profile, 0.95) == pytest.approx(Z * planner.MODEL_ERROR)


def test_less_confidence_needs_no_more_damage() -> None:
    sure, unsure = (planner.make_plan(synthetic.profile(), "0.8", c).proof.damage for c in (0.99, 0.6))
    assert unsure <= sure


def test_an_infeasible_budget_names_the_lowest_reachable_ratio() -> None:
    profile = synthetic.profile()
    with pytest.raises(planner.Infeasible) as caught:
        planner.make_plan(profile, "0.05")
    lowest = caught.value.lowest
    assert 0.05 < lowest < 0.6
    assert planner.make_plan(profile, str(lowest + 1e-6)).edits
    with pytest.raises(planner.Infeasible):
        planner.make_plan(profile, str(lowest - 1e-3))


def test_it_is_said_whether_noise_or_the_rules_forbid_a_budget(run: Any, tmp_path: Path) -> None:
    profile = synthetic.profile()
    profile.save(tmp_path / "p.json")
    with pytest.raises(planner.Infeasible) as caught:
        planner.make_plan(profile, "0.05")
    lowest, margin = caught.value.lowest, caught.value.margin
    assert margin == planner.margin(profile, 0.95)
    for budget, by_noise, words in (
        (lowest - margin / 2, True, "The rules of pruning allow it"),
        (lowest - 1.5 * margin, False, "The rules of pruning forbid it"),
    ):
        with pytest.raises(planner.Infeasible) as caught:
            planner.make_plan(profile, str(budget))
        assert caught.value.by_noise == by_noise
        done = run("asdm-prof", "plan", "--profile", "p.json", "--budget", budget)
        assert f"{words}: the lowest is {lowest - margin:.3f} without the margin of {margin:.3f} for" in done.err
        assert ("--confidence" in done.err) == by_noise
        compared = run("asdm-prof", "compare", "p.json", "p.json", "--budget", budget)
        assert words in compared.err
        assert not {"--confidence", "--validation"} & {*compared.err.replace(",", " ").split()}  # which it has not
    assert planner.make_plan(profile, str(lowest - margin / 2), confidence=0.5).edits  # as the message advises


def test_the_whole_teacher_is_a_plan_without_edits() -> None:
    plan = planner.make_plan(synthetic.profile(), "1.0")
    assert plan.edits == ()
    assert plan.predicted is not None
    assert plan.predicted.ratio == 1.0


@pytest.mark.parametrize(
    ("text", "ratio"), [("0.8", 0.8), ("80%", 0.8), ("250ms", 0.25), ("0.5s", 0.5), ("x1.25", 0.8), (" X2 ", 0.5)]
)
def test_budgets_are_read(text: str, ratio: float) -> None:
    assert budgets.parse_budget(text, teacher_latency_s=1.0) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["0", "1.5", "-3", "fast", "NaN", "", "inf", "x0", "0%", "2s", "120%", "x0.5"])
def test_what_is_no_budget_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget must be above 0 .* a fraction \(0.8\).* or a speed-up \(x1.3\)"):
        budgets.parse_budget(text, teacher_latency_s=1.0)


def test_gri_costs_little_damage_because_attention_has_no_parameters() -> None:
    """GRI drops ¾ of the query projection's use, 0.31 of 8.43 GMAC, in a unit of 2.5 of 859.5 M parameters."""
    profile = synthetic.profile()
    choice = next(c for c in make_choices(profile) if c.edit.op == "replace_unit")
    lost = (3 * 4096 * 320 * 80) / (838860800 + 7587594240)
    assert choice.damage == pytest.approx(lost * 2546240 / 859520964)


def test_the_most_that_a_budget_may_be_is_accepted_as_it_is_said() -> None:
    profile = synthetic.profile()
    profile = profile.model_copy(update={"whole": profile.whole.model_copy(update={"params": 8_765_028})})
    for name in budgets.BUDGETS:
        with pytest.raises(ValueError, match="at most the teacher's") as caught:
            budgets.parse_budgets({name: "1e9G"}, profile)
        number, unit = str(caught.value).partition("the teacher's ")[2].split(",")[0].split()
        offered = f"{number}s" if unit == "s" else number
        assert 0.99 < budgets.parse_budgets({name: offered}, profile)[name] <= 1
