"""The exact schedule for a latency budget: which pass, of which network, at which step (docs/methods/schedules.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asdm.plan.edits import Prediction, Proof
from asdm.schedule.legality import resolve
from asdm.schedule.schedule import TEACHER, Pass, Schedule
from asdm_prof.planner import plan as planner
from asdm_prof.planner.budgets import parse_budget
from asdm_prof.planner.schedule.model import StepsModel, is_full
from asdm_prof.planner.schedule.passes import candidates
from asdm_prof.planner.schedule.prices import StepPrices, parts_of
from asdm_prof.planner.schedule.programme import TICKS, Point, Programme, in_ticks
from asdm_prof.records import Profile, ScheduleFrontier, SchedulePoint, StepsDamage

MODEL_ERROR = 0.03  # of a whole image (1.96 σ): the assumed error of a predicted latency
PRIOR_AGES = 5
MEASURED, PRIOR = "measured across steps", "structural prior: share of MACs that is inherited, times age squared"
LEAST_GAIN = 0.9  # of the damage that fewer steps do at the same latency: above it, nothing is gained


@dataclass(frozen=True)
class StepsProblem:
    """Prices, damages and ticks of one planning."""

    profile: Profile
    prices: StepPrices
    model: StepsModel
    networks: Mapping[str, str]
    seconds: dict[str, float]  # of every pass
    damage: StepsDamage | None

    @property
    def plain_s(self) -> float:
        return self.prices.plain_image_s(self.model.calls)

    @property
    def tick_s(self) -> float:
        return self.model.calls * self.prices.full_s / TICKS

    def most(self, image_s: float) -> int:
        """Whole ticks of UNet calls that a latency of the whole image leaves."""
        return int((image_s - self.prices.rest_s) / self.tick_s + 1e-9)

    def solved(self, down: bool = False) -> Programme:
        rounded = np.floor if down else np.ceil
        return Programme.solve(self.model, in_ticks(self.seconds, self.tick_s, rounded), int(TICKS * 1.02))

    def schedule(self, names: Sequence[str], **more: Any) -> Schedule:
        used = {name: self.model.passes[name] for name in dict.fromkeys(names)}
        networks = {n: where for n, where in self.networks.items() if any(one.network == n for one in used.values())}
        return Schedule(
            family=self.profile.family, teacher_config_sha256=self.profile.config_sha256, networks=networks,
            passes=used, steps=tuple(names), **more,
        )  # fmt: skip


def prepare(
    profile: Profile,
    damage: StepsDamage | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    students: Mapping[str, str] = {},
    ratios: Mapping[str, float] = {},
) -> StepsProblem:
    """The problem behind a schedule.

    Raises ValueError for damage of another model, other weights, another sampler or another number of steps, and for a
    student that it did not measure.
    """
    if damage is None:
        calls = steps or profile.steps
        passes = candidates(profile.topology, profile.steps_batch == 2, students)
        model = prior(profile, passes, calls)
    else:
        check(profile, damage, steps, sampler)
        if unknown := [name for name in students if name not in damage.networks]:
            raise ValueError(
                f"the damage across steps has no student {unknown[0]}; measure it with `asdm-prof sensitivity "
                f"{damage.family} --across-steps --student {students[unknown[0]]}`."
            )
        out = {name for name in damage.networks if name not in students}
        passes = {name: one for name, one in damage.passes.items() if one.network not in out}
        own = [one for one in damage.damages if one.name in passes]
        used = (damage.additivity.used, damage.additivity.factor) if damage.additivity else ("sum", 1.0)
        model = StepsModel.of(passes, own, damage.gains, *used)
    prices = StepPrices.of(profile, damage, ratios)
    return StepsProblem(profile, prices, model, dict(students), _seconds(profile, passes, prices), damage)


def _seconds(profile: Profile, passes: Mapping[str, Pass], prices: StepPrices) -> dict[str, float]:
    """Seconds of every pass, after a full one of its network."""
    seconds = {}
    for name, one in passes.items():
        networks = {} if one.network == TEACHER else {one.network: ""}
        first = Pass(network=one.network)
        schedule = Schedule(family=profile.family, passes={"first": first, "it": one}, steps=("first", "it"),
                            networks=networks)  # fmt: skip
        seconds[name] = prices.step_s(resolve({one.network: profile.topology}, schedule).steps[1])
    return seconds


def check(profile: Profile, damage: StepsDamage, steps: int | None = None, sampler: str | None = None) -> None:
    """Raises ValueError for damage across steps of another teacher, size, sampler or number of steps."""
    planner.check_damage(profile, damage)
    if steps not in (None, damage.steps):
        raise ValueError(
            f"the damage across steps was measured with {damage.steps} steps, not {steps}: neighbouring steps are "
            "another distance apart; measure it with --steps of its own."
        )
    if sampler not in (None, damage.sampler):
        raise ValueError(
            f"the damage across steps was measured with {damage.sampler}, not {sampler}; measure it with that sampler."
        )


def prior(profile: Profile, passes: Mapping[str, Pass], calls: int) -> StepsModel:
    """Damages without weights or data: the share of MACs that a pass does not compute, times the age squared."""
    ages = min(PRIOR_AGES, max(calls - 1, 1))
    full = profile.whole.macs
    errors: dict[str, list[list[list[float | None]]]] = {}
    for name, one in passes.items():
        networks = {} if one.network == TEACHER else {one.network: ""}
        schedule = Schedule(family=profile.family, passes={"first": Pass(network=one.network), "it": one},
                            steps=("first", "it"), networks=networks)  # fmt: skip
        step = resolve({one.network: profile.topology}, schedule).steps[1]
        halves = [half for half in (step.conditional, step.unconditional) if half]
        lost = sum(_lost_macs(profile, half.places) / full for half in halves) / 2 + 0.5 * (2 - len(halves))
        if not one.inherit and one.unconditional in (None, "drop"):
            own: list[list[float | None]] = [[0.0 if is_full(one) and one.network == TEACHER else lost or 0.5]]
        else:
            own = [[lost * age**2] for age in range(1, ages + 1)]
        errors[name] = [own for _ in range(calls)]
    return StepsModel(passes, errors, (1.0,) * calls, ages)


def _lost_macs(profile: Profile, places: Any) -> float:
    if any(place.kind in ("unet", "clean") for place in places):
        return float(profile.whole.macs)
    return float(sum(profile.part(fqn).macs for place in places for fqn in parts_of(profile.topology, place)))


# ---------------------------------------------------------------------------------------------- planning


def make_schedule(problem: StepsProblem, budget: str) -> Schedule:
    """The schedule of least damage within a budget of the whole image's latency.

    Raises ValueError for an invalid budget, `Infeasible` with the lowest reachable share.
    """
    ratio = parse_budget(budget, problem.plain_s)
    if ratio >= 1:
        return _finished(problem, ("full",) * problem.model.calls, budget, ratio, 0.0)
    solved = problem.solved()
    point = solved.best(problem.most(ratio * problem.plain_s))
    if point is None:
        fastest = solved.frontier()[0]
        lowest = (problem.prices.rest_s + fastest.ticks * problem.tick_s) / problem.plain_s
        raise planner.Infeasible(lowest)
    below = problem.solved(down=True).best(problem.most(ratio * problem.plain_s))
    return _finished(problem, solved.steps_of(point), budget, ratio, below.total if below else 0.0)


def _finished(problem: StepsProblem, names: tuple[str, ...], budget: str, ratio: float, bound: float) -> Schedule:
    total = sum(problem.model.terms(names))
    damage, least = problem.model.damage(total), problem.model.damage(min(bound, total))
    return problem.schedule(
        names,
        **_promise(problem, names), budget=budget.strip(), budget_ratio=ratio,
        proof=Proof(status="optimal", damage=damage, bound=least, gap=1 - least / damage if damage else 0.0),
    )  # fmt: skip


def _promise(problem: StepsProblem, names: tuple[str, ...]) -> dict[str, Any]:
    """What a schedule says of its latency and damage, and where they come from."""
    damage, profile = problem.damage, problem.profile
    image_s = problem.prices.image_s(problem.schedule(names))
    own = image_s / problem.plain_s
    return {
        "sampler": damage.sampler if damage else None,
        "weights_sha256": damage.weights_sha256 if damage else None,
        "guidance_scale": damage.guidance_scale if damage else None,
        "damage_from": MEASURED if damage else PRIOR,
        "predicted": Prediction(
            latency_s=image_s, ratio=own, low=own * (1 - MODEL_ERROR), high=own * (1 + MODEL_ERROR)
        ),
        "predicted_damage": problem.model.damage(sum(problem.model.terms(names))),
        "profile_sha256": profile.sha256(),
        "steps_damage_sha256": damage.sha256() if damage else None,
        "measured_at": planner.measured_at(profile),
    }  # fmt: skip


def price_schedule(problem: StepsProblem, schedule: Schedule) -> Schedule:
    """A schedule that is there, with its latency and damage by this problem instead of its own.

    Raises ValueError for one of another UNet or number of calls, and for passes that were not measured where it has
    them.
    """
    own = problem.profile.config_sha256
    if schedule.teacher_config_sha256 not in (None, own):
        made_for = str(schedule.teacher_config_sha256)[:12]
        raise ValueError(
            f"{schedule.name} was made for another UNet (config {made_for}) than the profile's ({own[:12]})."
        )
    if len(schedule.steps) != problem.model.calls:
        raise ValueError(
            f"{schedule.name} is a schedule of {len(schedule.steps)} UNet calls, and damage is known for "
            f"{problem.model.calls}."
        )
    known = {one: name for name, one in problem.model.passes.items()}
    for number, name in enumerate(schedule.steps):
        if schedule.passes[name] not in known:
            raise ValueError(
                f"{schedule.name}: step {number} ({name}) does what no measured pass does; those are "
                f"{', '.join(known.values())}."
            )
    names = tuple(known[schedule.pass_at(n)] for n in range(len(schedule.steps)))
    return schedule.model_copy(
        update=_promise(problem, names) | {"budget": None, "budget_ratio": None, "proof": None}
    )  # fmt: skip


def make_frontier(problem: StepsProblem) -> ScheduleFrontier:
    """Every schedule that no other beats, the plain image last, and what fewer steps do at the same latency."""
    solved = problem.solved()
    points = [_point(problem, solved, point) for point in solved.frontier()]
    return ScheduleFrontier(
        family=problem.profile.family, calls=problem.model.calls, plain_s=problem.plain_s,
        damage_from=MEASURED if problem.damage else PRIOR, profile_sha256=problem.profile.sha256(),
        steps_damage_sha256=problem.damage.sha256() if problem.damage else None,
        passes=dict(problem.model.passes), points=tuple(points),
        gained=gained(problem, points),
    )  # fmt: skip


def _point(problem: StepsProblem, solved: Programme, point: Point) -> SchedulePoint:
    image_s = problem.prices.rest_s + point.ticks * problem.tick_s
    return SchedulePoint(
        latency_s=image_s, ratio=image_s / problem.plain_s, damage=problem.model.damage(point.total),
        steps=solved.steps_of(point),
    )  # fmt: skip


def fewer_steps_damage(problem: StepsProblem, ratio: float) -> float | None:
    """The damage of the teacher with as many steps as a latency allows, between those that were measured."""
    if problem.damage is None or not problem.damage.fewer_steps:
        return None
    rows = sorted((one.calls, one.damage) for one in problem.damage.fewer_steps)
    calls = (ratio * problem.plain_s - problem.prices.rest_s) / problem.prices.full_s
    if not rows[0][0] <= calls <= rows[-1][0]:
        return None
    logs = np.interp(calls, [n for n, _ in rows], np.log([max(damage, 1e-30) for _, damage in rows]))
    return float(np.exp(logs))


def gained(problem: StepsProblem, points: Sequence[SchedulePoint]) -> bool | None:
    """Whether any schedule does less damage than fewer steps at its latency; None: not measured."""
    beaten = None
    for point in points:
        fewer = fewer_steps_damage(problem, point.ratio)
        if fewer is not None:
            beaten = bool(beaten) or point.damage < LEAST_GAIN * fewer
    return beaten


def shadow_sentence(frontier: ScheduleFrontier, schedule: Schedule) -> str | None:
    """What a little more latency would be worth: the next point of the frontier; None at its end."""
    if schedule.predicted is None or schedule.predicted_damage is None:
        return None
    slower = [
        point for point in frontier.points
        if point.ratio > schedule.predicted.ratio and point.damage < 0.99 * schedule.predicted_damage
    ]  # fmt: skip
    if not slower:
        return None
    more_ms, less = 1e3 * (slower[0].latency_s - schedule.predicted.latency_s), schedule.predicted_damage
    return (
        f"With {more_ms:.3g} ms more ({slower[0].ratio:.3f}×), the damage would be {slower[0].damage:.3g} instead of "
        f"{less:.3g}."
    )
