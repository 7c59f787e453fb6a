"""The exact plan for a latency budget: what is removed and what is replaced (docs/methods/planner.md).

Minimise Σ damage·x subject to Σ latency·x ≤ budget − z·σ and the legality rules, by integer programming with a proof. σ
is one number: measured, if there is a validation (`asdm-prof validate`); otherwise an assumed error of additivity and
the unit times' standard errors, as if every unit were edited. Nothing here needs torch: everything comes from files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm, t as student_t

from asdm.plan.edits import AnyEdit, MeasuredAt, Prediction, Proof, PruningPlan
from asdm.plan.legality import ResolvedPlan, is_legal_flow, resolve
from asdm.records.measurement import Estimate
from asdm.utils import sizes
from asdm_prof.planner import loads_in, milp
from asdm_prof.planner.budgets import budget_rows, parse_budgets
from asdm_prof.planner.problem import Problem, Row
from asdm_prof.records import Damage, Profile, StepsDamage, Validation

STRUCTURAL_PRIOR = "structural prior"
MEASURED = "measured damage"
MODEL_ERROR = 0.01  # of the teacher (1 σ): the assumed error of a sum of unit times as a student's, until validated


class Infeasible(Exception):
    """No legal plan meets the budgets; `lowest` is the latency ratio of the fastest one.

    `alone` has the least share at which each budget can be met by itself, `relaxed` the budgets of the cheapest change
    that makes all of them feasible together: their increases add up to the least. `margin` is what latencies hold for
    noise; `by_noise` is True where the latency budget by itself could be met without it.
    """

    def __init__(
        self,
        lowest: float,
        alone: Mapping[str, float] | None = None,
        relaxed: Mapping[str, float] | None = None,
        margin: float = 0.0,
        by_noise: bool = False,
    ) -> None:
        super().__init__(f"the lowest reachable ratio is {lowest:.3f}")
        self.lowest = lowest
        self.alone = dict(alone or {"latency": lowest})
        self.relaxed = dict(relaxed or {"latency": lowest})
        self.margin, self.by_noise = margin, by_noise


class TooMuchDamage(Exception):
    """Every plan within the budgets does more damage than is allowed; `least` is that of the best one."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__(f"the least damage within the budgets is {least:.4g}, more than the {most:.4g} allowed")
        self.least, self.most = least, most


def parse_damage(text: str, damage: Damage | None) -> float:
    """`0.05`, or `5%` of the teacher's mean square output, which a damage.json tells; raises ValueError otherwise."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"--max-damage must be a number of at least 0, or a percentage, got {text!r}.")
    if percent and damage is None:
        raise ValueError(f"--max-damage {text} is a share of the teacher's output; name a damage.json (--damage).")
    return value / 100 * damage.teacher_power if percent and damage else value


def _sigma(share: Estimate) -> float:
    """The standard error behind a 95 % interval."""
    return (share.high - share.low) / (2 * 1.96)


def margin(profile: Profile, confidence: float, validation: Validation | None = None) -> float:
    """How far below its budget a plan stays, as a ratio to the teacher: z·σ, or Student's t·σ for a measured σ."""
    if validation:
        return float(student_t.ppf(confidence, len(validation.plans))) * validation.sigma
    variance = MODEL_ERROR**2 + sum(_sigma(part.share) ** 2 for part in profile.units)
    for unit in {option.unit for option in profile.options}:
        variance += max(_sigma(option.share) ** 2 for option in profile.options if option.unit == unit)
    return float(norm.ppf(confidence)) * math.sqrt(variance)


def price(profile: Profile, plan: ResolvedPlan | Sequence[AnyEdit], validation: Validation | None = None) -> Prediction:
    """A profile's prediction for a student: the teacher's time less the savings, and its 95 % interval.

    A validation supplies its measured σ, and its correction if that was approved. Raises ValueError for an illegal edit
    and for a replacement that the profile did not time.
    """
    plan = _resolved(profile, plan)
    saved, variance = _saved(profile, plan)
    factors = validation.factors if validation else {}
    ratio = 1 - sum(share * (1 - factors.get(op, 0.0)) for op, share in saved.items())
    spread = 1.96 * math.sqrt(variance + MODEL_ERROR**2) if plan.edits else 0.0
    if validation and plan.edits:
        spread = margin(profile, 0.975, validation)
    return Prediction(
        latency_s=ratio * profile.whole.latency_s.median, ratio=ratio, low=ratio - spread, high=ratio + spread
    )


def saved_by_kind(profile: Profile, plan: ResolvedPlan | Sequence[AnyEdit]) -> dict[str, float]:
    """What each kind of edit (`op`) in a plan saves according to the profile, as a share of the teacher."""
    return _saved(profile, _resolved(profile, plan))[0]


def _resolved(profile: Profile, plan: ResolvedPlan | Sequence[AnyEdit]) -> ResolvedPlan:
    return plan if isinstance(plan, ResolvedPlan) else resolve(profile.topology, plan)


def _saved(profile: Profile, plan: ResolvedPlan) -> tuple[dict[str, float], float]:
    """Savings by kind of edit, and the variance of their sum from the unit times alone."""
    saved: dict[str, float] = dict.fromkeys(sorted({edit.op for edit in plan.edits}), 0.0)
    variance = 0.0
    for fqn in plan.gone:
        share = profile.part(fqn).share
        saved[_op_of(plan, fqn)] += share.median
        variance += _sigma(share) ** 2
    for edit in plan.replacements:
        before, after = profile.part(edit.unit).share, profile.option(edit).share
        saved["replace_unit"] += before.median - after.median
        variance += _sigma(before) ** 2 + _sigma(after) ** 2
    return saved, variance


def _op_of(plan: ResolvedPlan, fqn: str) -> str:
    """The kind of edit that removed a part."""
    if fqn in plan.removed_units:
        return "remove_unit"
    in_layers = (unit.fqn for layer in plan.removed_layers for unit in plan.topology.layer_units(*layer))
    return "remove_layer" if fqn in in_layers else "remove_block"


def make_plan(
    profile: Profile,
    budget: str | Mapping[str, str],
    confidence: float = 0.95,
    validation: Validation | None = None,
    damage: Damage | None = None,
    programs: Sequence[str] = (),
) -> PruningPlan:
    """The legal plan of least damage within a latency budget, or within several by name, proved optimal.

    `confidence` is the probability with which a latency budget must hold: the plan stays z·σ below it. Without a damage
    file, damage is the structural prior. `programs` (comfyui, sdcpp, diffusers) are to load the student. Raises
    ValueError for an invalid budget, for a validation or damage of another model, and for a program that loads none of
    its students, Infeasible with what is reachable.
    """
    asked = {"latency": budget} if isinstance(budget, str) else dict(budget)
    problem, budgets, below = prepare(profile, asked, confidence, validation, damage, programs)
    solution = solve(problem, budgets, below)
    edits = problem.edits(solution.chosen)
    return PruningPlan(
        family=profile.family,
        teacher_config_sha256=profile.config_sha256,
        edits=edits,
        budget=asked["latency"].strip() if "latency" in asked else None,
        budget_ratio=budgets.get("latency"),
        budgets={name: share for name, share in budgets.items() if name != "latency"} or None,
        confidence=confidence,
        damage_from=MEASURED if damage else STRUCTURAL_PRIOR,
        predicted=price(profile, edits, validation),
        proof=Proof(status="optimal", damage=solution.damage, bound=solution.bound, gap=solution.gap),
        profile_sha256=profile.sha256(),
        validation_sha256=validation.sha256() if validation else None,
        damage_sha256=damage.sha256() if damage else None,
        measured_at=measured_at(profile),
        loads_in=tuple(programs),
    )


def prepare(
    profile: Profile,
    asked: Mapping[str, str],
    confidence: float = 0.95,
    validation: Validation | None = None,
    damage: Damage | None = None,
    programs: Sequence[str] = (),
) -> tuple[Problem, dict[str, float], float]:
    """The checked problem behind a plan, its budgets as shares, and the margin below the latency budget."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be at least 0.5 and below 1, got {confidence}.")
    budgets = parse_budgets(asked, profile)
    if not is_legal_flow(profile.topology, (), ()):
        raise ValueError(
            f"{profile.family} is a student whose layers became identities; plan on a profile of its teacher."
        )
    if validation:
        _check_validation(profile, validation)
    if damage:
        check_damage(profile, damage)
    problem = Problem.of(profile, validation, damage)
    if programs:
        problem = loads_in.ruled(problem, programs)
    return problem, budgets, margin(profile, confidence, validation)


def solve(
    problem: Problem, budgets: Mapping[str, float], below: float = 0.0, extra: Sequence[Row] = ()
) -> milp.Solution:
    """The plan of least damage, and the fastest of those; `extra` rows constrain it further.

    Raises Infeasible if no legal plan meets the budgets.
    """
    if all(share >= 1 for share in budgets.values()) and not extra and not problem.rules:
        return milp.Solution((), 0.0, 0.0, 0.0)
    by_name = budget_rows(problem, budgets, below)
    without = () if extra else problem.dominated(budgets)
    solution = milp.best(problem, [*(row for rows in by_name.values() for row in rows), *extra], without=without)
    if solution is None:
        raise infeasible(problem, budgets, below)
    return solution


def infeasible(problem: Problem, budgets: Mapping[str, float], below: float) -> Infeasible:
    """What is reachable if budgets cannot all be met: each alone, and the cheapest relaxation of all."""
    alone = {name: reachable(problem, name) + (below if name == "latency" else 0.0) for name in budgets}
    lowest = alone.get("latency", reachable(problem, "latency") + below)
    by_noise = "latency" in budgets and lowest - below <= budgets["latency"] < lowest
    return Infeasible(lowest, alone, milp.relaxed(problem, budgets, below), below, by_noise)


def reachable(problem: Problem, name: str) -> float:
    """The least share of the teacher's latency, MACs, parameters or memory that a legal plan has."""
    share = milp.most_saved(problem, name)
    assert share is not None, "the teacher itself is legal"
    return share


def measured_at(profile: Profile) -> MeasuredAt:
    """The settings of a profile, as a plan remembers them."""
    return MeasuredAt(**{name: getattr(profile, name) for name in MeasuredAt.model_fields})


def _check_validation(profile: Profile, validation: Validation) -> None:
    """Raises ValueError for a validation of another model or other settings than the profile's."""
    if validation.teacher_config_sha256 != profile.config_sha256:
        raise ValueError(f"the validation is of {validation.family}, the profile of another model, {profile.family}.")
    for name in MeasuredAt.model_fields:
        measured, profiled = getattr(validation, name), getattr(profile, name)
        if measured != profiled:
            raise ValueError(
                f"the validation was measured with {name} {measured}, and the profile with {profiled}; "
                "validate the profile that you plan on."
            )


def check_damage(profile: Profile, damage: Damage | StepsDamage) -> None:
    """Raises ValueError for damage measured on another teacher, other weights or another size than the profile's."""
    if damage.teacher_config_sha256 != profile.config_sha256:
        raise ValueError(
            f"the damage was measured on {damage.family} (config {damage.teacher_config_sha256[:12]}), another model "
            f"than the profile's {profile.family} (config {profile.config_sha256[:12]}); measure it on that one."
        )
    if profile.weights_sha256 not in (None, damage.weights_sha256):
        raise ValueError(
            f"the damage was measured on other weights ({damage.weights}, {damage.weights_sha256[:12]}) than the "
            f"profile was taken with ({profile.weights}, {str(profile.weights_sha256)[:12]}); measure it on those."
        )
    if damage.size != profile.size:
        raise ValueError(
            f"the damage was measured at {sizes.shown(damage.size)} pixels, the profile at "
            f"{sizes.shown(profile.size)}; measure both at one size."
        )


def draw_plan(problem: Problem, ratio: float, rng: np.random.Generator) -> tuple[AnyEdit, ...]:
    """A random legal plan predicted at or just below `ratio`: the cheapest at random prices per second saved.

    Experts save nothing, so each is taken with probability one half where a neighbour is pruned. `ratio` must be
    reachable: at least `reachable(problem, "latency")`.
    """
    saving = np.array(problem.saving)
    prices = np.abs(saving) * rng.exponential(size=len(saving))
    hosts = [host for host, _ in problem.hosts]
    prices[hosts] *= rng.choice([-1.0, 1.0], size=len(hosts))
    rows = milp.Rows.of(problem, [(dict(enumerate(saving)), 1 - ratio, np.inf)])
    result = rows.minimise(dict(enumerate(prices)))
    assert result is not None, f"no legal plan reaches {ratio}"
    return problem.edits([i for i in range(len(saving)) if result.x[i] > 0.5])
