"""Schedules within a latency budget: the optimum is that of brute force, and what does not belong is refused."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler

import asdm_prof
from asdm.models.drawing import sampler_mark, scheduler_by_name
from asdm.models.settings import SCHEDULERS
from asdm.schedule.legality import resolve
from asdm.schedule.presets import make
from asdm.schedule.schedule import TEACHER, UNET, Forecast, Pass, Schedule
from asdm_prof.planner import plan as planner
from asdm_prof.planner.schedule import plan as schedules
from asdm_prof.planner.schedule.draw import draw
from asdm_prof.planner.schedule.model import State, StepsModel
from asdm_prof.planner.schedule.passes import candidates
from asdm_prof.planner.schedule.prices import StepPrices
from asdm_prof.planner.schedule.programme import Programme
from asdm_prof.records import Profile, StepsDamage
from asdm_prof.records.steps_damage import FewerSteps, PassDamage
from tests.asdm_prof import synthetic

PASSES = {
    "full": Pass(),
    "output": Pass(inherit=(UNET,)),
    "line": Pass(inherit=(UNET,), forecast=Forecast(order=1)),
    "half": Pass(unconditional=(UNET,)),
    "free": Pass(unconditional="drop"),
    "pupil": Pass(network="pupil"),
}
TICKS = {"full": 7, "output": 0, "line": 1, "half": 4, "free": 3, "pupil": 5}
CALLS, AGES = 5, 2


def random_model(seed: int, used: Any = "sum") -> StepsModel:
    rng = np.random.default_rng(seed)

    def errors(one: Pass) -> list[Any]:
        if not one.inherit and one.unconditional in (None, "drop"):
            return [[[0.0 if one == Pass() else float(rng.random())]] for _ in range(CALLS)]
        wide = AGES if one.forecast or one.inherit else 1
        return [[[float(rng.random() * (1 + age)) for _ in range(wide)] for age in range(AGES)] for _ in range(CALLS)]

    tables = {name: errors(one) for name, one in PASSES.items()}
    return StepsModel(PASSES, tables, tuple(rng.random(CALLS) + 0.1), AGES, used)


def by_hand(model: StepsModel, names: tuple[str, ...]) -> float | None:
    """The damage of a schedule, with ages and gaps counted from its names alone."""
    total = 0.0
    for step, name in enumerate(names):
        one, fulls = PASSES[name], [s for s in range(step) if names[s] in ("full", "pupil")]
        error = model.errors[name][step]
        if name in ("full", "pupil"):
            value = error[0][0]
        elif not fulls or names[fulls[-1]] == "pupil":
            return None
        elif name == "free":
            value = error[0][0]
        else:
            age = step - fulls[-1]
            if age > AGES:
                return None
            alike = len(fulls) > 1 and names[fulls[-2]] == names[fulls[-1]]
            gap = min(fulls[-1] - fulls[-2], AGES) if alike else 0
            if one.forecast and not gap:
                return None
            row = error[age - 1]
            value = row[0] if len(row) == 1 or not gap else row[gap - 1]
        damage = model.gains[step] * value
        total += damage**0.5 if model.used == "amplitudes" else damage
    return total


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_and_the_frontier_are_those_of_brute_force(seed: int) -> None:
    model = random_model(seed, ("sum", "amplitudes")[seed % 2])
    every = {}
    for names in itertools.product(PASSES, repeat=CALLS):
        if (total := by_hand(model, names)) is not None:
            every[names] = sum(TICKS[name] for name in names), total
    solved = Programme.solve(model, TICKS, 7 * CALLS)
    for most in range(7 * CALLS + 1):
        within = [total for ticks, total in every.values() if ticks <= most]
        point = solved.best(most)
        assert (point is None) == (not within)
        if point:
            assert point.total == pytest.approx(min(within))
            assert every[solved.steps_of(point)] == pytest.approx((point.ticks, point.total))
    frontier = solved.frontier()
    assert all(a.ticks < b.ticks and a.total > b.total for a, b in itertools.pairwise(frontier))
    assert frontier[-1].total == pytest.approx(min(total for _, total in every.values()))


def test_states_know_the_network_the_age_and_the_gap() -> None:
    model = random_model(0)
    state: State | None = None
    for name, expected in [
        ("full", ("teacher", 0, 0)), ("output", ("teacher", 1, 0)), ("full", ("teacher", 0, 2)),
        ("free", ("teacher", 1, 2)), ("free", ("teacher", 2, 2)), ("free", ("teacher", 3, 2)),
        ("full", ("teacher", 0, 2)), ("pupil", ("pupil", 0, 0)), ("pupil", ("pupil", 0, 1)),
    ]:  # fmt: skip
        state = model.after(state, name)
        assert state == State(*expected)
    assert model.after(State(TEACHER, 3, 1), "output") is None
    assert model.after(State("pupil", 0, 0), "output") is None


# ---------------------------------------------------------------------------------------------- on a profile


@pytest.fixture(scope="module")
def profile() -> Profile:
    return synthetic.profile()


def measured(profile: Profile, calls: int = 6, **changes: Any) -> StepsDamage:
    """A made-up measurement: errors by age, gains that fall."""
    passes = candidates(profile.topology, guided=True)
    prior = schedules.prior(profile, passes, calls)
    damages = [PassDamage(name=name, error=prior.errors[name]) for name in passes]  # type: ignore[arg-type]
    values = {
        "created_utc": "2026-01-01T00:00:00Z", "command": "made up", "family": profile.family, "weights": "shipped",
        "weights_sha256": "a" * 64, "teacher_config_sha256": profile.config_sha256, "data": "emoji", "split": "train",
        "prompts": 8, "seed": 0, "dtype": "fp32", "device": "cpu", "threads": profile.threads, "size": profile.size,
        "prediction_type": "epsilon", "sampler": "DDIMScheduler", "steps": calls, "calls": calls,
        "guidance_scale": 8.0, "networks": {}, "passes": passes, "damages": tuple(damages),
        "gains": tuple(0.5**n for n in range(calls)), "latent_power": 1.0, "full_seconds": 2.0, "kept_seconds": 2.02,
        "half_seconds": 1.1, "rest_seconds": 0.5, "seconds": 1.0, "environment": {},
        "fewer_steps": (FewerSteps(steps=5, calls=5, damage=0.5), FewerSteps(steps=2, calls=2, damage=5.0)),
    }  # fmt: skip
    return StepsDamage(**(values | changes))


def test_prices_follow_the_units_and_the_halves(profile: Profile) -> None:
    prices = StepPrices.of(profile)
    whole = profile.whole.latency_s.median
    assert prices.full_s == pytest.approx(2 * whole)
    passes = candidates(profile.topology, guided=True)
    problem = schedules.prepare(profile, steps=6)
    assert problem.seconds["no-guidance"] == pytest.approx(whole)
    assert problem.seconds["unconditional"] == pytest.approx(whole, rel=0.01)
    assert problem.seconds["output"] == pytest.approx(0, abs=1e-3)
    inherited = {*passes["branch0"].inherit}
    left = 1 - sum(part.share.median for part in profile.parts if part.fqn in inherited)
    outside = profile.part("other").share.median * 9 / 12  # three of four up blocks are not entered
    assert problem.seconds["branch0"] == pytest.approx(2 * whole * (left - outside))
    calibrated = StepPrices.of(profile, measured(profile))
    assert calibrated.full_s == pytest.approx(whole / 0.55)
    assert calibrated.keeping == pytest.approx(0.01)


def test_a_pass_of_attentions_costs_what_the_calibration_measured(profile: Profile) -> None:
    passes = candidates(profile.topology, True, named=["self_attention,cross_attention"])
    name = "self_attention+cross_attention"
    prior = schedules.prior(profile, passes, 6)
    damages = tuple(PassDamage(name=one, error=prior.errors[one]) for one in passes)  # type: ignore[arg-type]
    calibration = measured(profile, passes=passes, damages=damages, pass_seconds={name: 1.2})
    problem = schedules.prepare(profile, calibration)
    whole = profile.whole.latency_s.median
    assert problem.seconds[name] == pytest.approx(0.6 * whole / 0.55)
    assert problem.seconds[f"{name}-taylor1"] >= problem.seconds["full"] * 0.99  # not timed
    assert schedules.prepare(profile, calibration.model_copy(update={"threads": 99})).seconds[name] >= 2 * whole


def test_a_schedule_keeps_to_its_budget_and_says_so(profile: Profile) -> None:
    problem = schedules.prepare(profile, measured(profile))
    made = schedules.make_schedule(problem, "0.6")
    assert made.predicted
    assert made.proof
    assert made.predicted_damage
    assert made.predicted.ratio <= 0.6 + 1e-9
    assert made.predicted.latency_s == pytest.approx(problem.prices.image_s(made))
    assert made.proof.bound <= made.predicted_damage
    assert made.proof.gap < 0.2
    assert (made.sampler, made.steps_damage_sha256) == ("DDIMScheduler", measured(profile).sha256())
    assert schedules.make_schedule(problem, "1").steps == ("full",) * 6
    with pytest.raises(planner.Infeasible):
        schedules.make_schedule(problem, "0.01")
    frontier = schedules.make_frontier(problem)
    assert "ms more" in str(schedules.shadow_sentence(frontier, made))


def test_whole_frontier_of_sd15_over_thirty_steps_takes_seconds(profile: Profile) -> None:
    began = time.process_time()
    frontier = schedules.make_frontier(schedules.prepare(profile, steps=30))
    assert time.process_time() - began < 10
    assert len(frontier.points) > 100
    assert frontier.points[-1].damage == 0


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({"teacher_config_sha256": "b" * 64}, {}, "another model than the profile's"),
        ({"size": 256}, {}, "measured at 256 pixels, the profile at"),
        ({}, {"steps": 20}, "measured with 6 steps, not 20"),
        ({}, {"sampler": "EulerDiscreteScheduler"}, "measured with DDIMScheduler, not EulerDiscreteScheduler"),
        ({}, {"students": {"small": "dir"}}, "has no student small; measure it with"),
    ],
)
def test_damage_of_something_else_is_refused(
    profile: Profile, changes: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        schedules.prepare(profile, measured(profile, **changes), **asked)


def test_damage_of_other_weights_is_refused(profile: Profile) -> None:
    real = profile.model_copy(update={"weights_sha256": "c" * 64})
    with pytest.raises(ValueError, match="measured on other weights"):
        schedules.prepare(real, measured(profile))


def test_where_fewer_steps_do_as_well_nothing_is_gained(profile: Profile) -> None:
    """At four steps, say: every schedule loses to the plain sampler with fewer steps."""
    fewer = (FewerSteps(steps=3, calls=3, damage=1e-6), FewerSteps(steps=2, calls=2, damage=1e-6))
    problem = schedules.prepare(profile, measured(profile, calls=4, fewer_steps=fewer))
    assert schedules.make_frontier(problem).gained is False
    easy = (FewerSteps(steps=3, calls=3, damage=100.0), FewerSteps(steps=2, calls=2, damage=100.0))
    problem = schedules.prepare(profile, measured(profile, calls=4, fewer_steps=easy))
    assert schedules.make_frontier(problem).gained is True


def test_the_command_says_that_nothing_is_gained_at_four_steps(run: Any, profile: Profile) -> None:
    fewer = (FewerSteps(steps=3, calls=3, damage=1e-6), FewerSteps(steps=2, calls=2, damage=1e-6))
    measured(profile, calls=4, fewer_steps=fewer).save("damage.json")
    profile.save("profile.json")
    words = ("--profile", "profile.json", "--damage", "damage.json")
    done = run("asdm-prof", "schedule", "--budget", "0.8", *words, "-o", "schedule.json")
    assert done.code == 0, done.err
    assert "Nothing is gained across 4 steps" in done.err
    priced = run("asdm-prof", "schedule", "--price", "schedule.json", *words, "-o", "priced.json")
    assert priced.code == 0, priced.err
    assert Schedule.load("priced.json").predicted_damage == Schedule.load("schedule.json").predicted_damage
    refused = run("asdm-prof", "schedule", "--price", "every_n", "--budget", "0.5", *words)
    assert (refused.code, "cannot be combined with --budget" in refused.err) == (2, True)


def test_a_calibration_on_other_threads_is_used_and_said(run: Any, profile: Profile) -> None:
    """Its damage holds there; its times do not."""
    threads = profile.threads + 1
    elsewhere = measured(profile).model_copy(update={"threads": threads})
    elsewhere.save("damage.json")
    profile.save("profile.json")
    words = ("--profile", "profile.json", "--budget", "0.8", "-o", "schedule.json", "--force")
    done = run("asdm-prof", "schedule", *words, "--damage", "damage.json")
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert f"measured with threads {threads}, not {profile.threads} as the profile" in said
    measured(profile).save("alike.json")
    assert "measured with" not in run("asdm-prof", "schedule", *words, "--damage", "alike.json").err


def test_in_python_it_is_planned_and_priced_as_by_the_command(profile: Profile) -> None:
    frontier = asdm_prof.schedule(profile, steps=6)
    planned = asdm_prof.schedule(profile, 0.7, steps=6)
    assert planned == schedules.make_schedule(schedules.prepare(profile, None, 6), "0.7")
    assert min(point.ratio for point in frontier.points) <= planned.predicted.ratio <= 0.7
    assert asdm_prof.schedule(profile, price=planned, steps=6).predicted == planned.predicted
    assert asdm_prof.schedule(profile, price="every_n:n=2", steps=6).steps.count("full") == 3
    for refused, words in (
        ({"budget": 0.7, "price": planned}, "cannot be combined with budget"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"scheduler": "best"}, "unknown scheduler 'best'; choose from ddim"),
    ):
        with pytest.raises(ValueError, match=words):
            asdm_prof.schedule(profile, **refused)
    with pytest.raises(ValueError, match="a schedule is exported as graphs; choose --to onnx or openvino, got coreml"):
        asdm_prof.export("mini", "out", to="coreml", schedule="every_n")


def test_one_schedule_costs_the_same_under_every_sampler_and_its_damage_is_told_for_each(profile: Profile) -> None:
    steps = make("every_n:n=2", profile.topology, 6, profile.family, profile.config_sha256)
    priced = {}
    samplers = [SCHEDULERS[name] for name in ("euler", "dpm", "dpm_sde", "ddim")]
    assert len(set(samplers)) == 4
    for n, sampler in enumerate(samplers):
        gains = tuple((1 + n) * 0.5**step for step in range(6))
        problem = schedules.prepare(profile, measured(profile, sampler=sampler, gains=gains))
        priced[sampler] = schedules.price_schedule(problem, steps)
        assert (priced[sampler].sampler, priced[sampler].steps) == (sampler, steps.steps)
    assert len({one.predicted.latency_s for one in priced.values() if one.predicted}) == 1
    first, *others = (one.predicted_damage or 0.0 for one in priced.values())
    assert others == pytest.approx([2 * first, 3 * first, 4 * first])
    for source, message in (("t_gate:step=3", "does what no measured pass does"), ("deepcache", "of 5 UNet calls")):
        calls = 5 if source == "deepcache" else 6
        with pytest.raises(ValueError, match=message):
            schedules.price_schedule(problem, make(source, profile.topology, calls, profile.family))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_samplers_mark_is_that_of_its_name(name: str) -> None:
    pipe = SimpleNamespace(scheduler=DDIMScheduler(beta_schedule="scaled_linear"))
    assert sampler_mark(scheduler_by_name(pipe, name)) == SCHEDULERS[name]


def test_a_sampler_that_cannot_begin_with_noise_alone_is_refused_where_the_model_does() -> None:
    pipe = SimpleNamespace(scheduler=DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    for name in SCHEDULERS:
        if name in ("pndm", "heun"):
            with pytest.raises(
                ValueError, match=f"which the sampler {name} cannot; choose from ddim, ddpm, euler, .*lcm"
            ):
                scheduler_by_name(pipe, name)
        else:
            scheduler = scheduler_by_name(pipe, name)
            assert scheduler.alphas_cumprod[-1] < 1e-6, name


def test_random_schedules_go_from_teacher_to_student_and_back(profile: Profile) -> None:
    students = {"small": "dir"}
    passes = candidates(profile.topology, True, students)
    shapes = dict.fromkeys(("teacher", "small"), profile.topology)
    turns = set()
    for one in draw("sd15", passes, students, 30, 3, 24, np.random.default_rng(0)):
        assert len(resolve(shapes, one).steps) == 30  # raises ValueError where one is illegal
        drawn_by = [one.passes[name].network for name in one.steps]
        turns |= set(itertools.pairwise(drawn_by))
    assert turns == set(itertools.product(("teacher", "small"), repeat=2))


def test_a_student_may_draw_steps(profile: Profile) -> None:
    """Students × schedules in one problem: a cheap student of little damage is taken."""
    problem = schedules.prepare(profile, None, 6, students={"small": "dir"}, ratios={"small": 0.5})
    errors = {**problem.model.errors, "small": [[[1e-6]]] * 6}
    problem = replace(problem, model=replace(problem.model, errors=errors))
    made = schedules.make_schedule(problem, "0.6")
    assert "small" in made.steps
    assert made.networks == {"small": "dir"}
    assert made.passes["small"].network == "small"


def test_presets_are_priced_too(profile: Profile) -> None:
    prices = StepPrices.of(profile)
    ratios = {
        source: prices.image_s(make(source, profile.topology, 30, profile.family)) / prices.plain_image_s(30)
        for source in ("every_n:n=1", "every_n:n=2", "deepcache:interval=2", "t_gate:step=15,sp_interval=1")
    }
    assert ratios["every_n:n=1"] == pytest.approx(1)
    assert 0.45 < ratios["every_n:n=2"] < ratios["deepcache:interval=2"] < 0.7
    assert ratios["t_gate:step=15,sp_interval=1"] < 0.8
