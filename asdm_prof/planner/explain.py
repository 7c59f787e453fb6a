"""Why a plan is what it is: binding budgets, shadow prices, and the regret of every other choice.

All of it is solved, not estimated. A budget is binding if the plan would do less damage without it. A regret is the
damage of the best plan that treats a unit differently, minus the plan's. A shadow price is the slope of the relaxation
to fractions of choices; the next whole step is given beside it, since a plan cannot take a fraction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from asdm.plan.edits import PruningPlan, Regret, ShadowPrice, Why
from asdm.utils.progress import Tell
from asdm_prof.planner import loads_in, plan as planner
from asdm_prof.planner.budgets import budget_rows, memory_bytes
from asdm_prof.planner.milp import SOLVER_TOLERANCE, Rows, Solution, best
from asdm_prof.planner.problem import Problem, Row
from asdm_prof.records import Damage, Profile, Validation

TIE = 1e-12  # damages closer than that are one


def explain(
    problem: Problem, solution: Solution, budgets: Mapping[str, float], below: float = 0.0, tell: Tell = lambda *_: None
) -> Why:
    """The reasons behind a solution under budgets (shares of the teacher's)."""
    rows = budget_rows(problem, budgets, below)
    return Why(
        binding=tuple(name for name in budgets if _binds(problem, solution, rows, name)),
        shadow_prices={name: _shadow_price(problem, solution, rows, name) for name in budgets},
        regrets=tuple(_regrets(problem, solution, budgets, _flat(rows), tell)),
    )


def with_reasons(
    profile: Profile,
    plan: PruningPlan,
    confidence: float = 0.95,
    validation: Validation | None = None,
    damage: Damage | None = None,
    tell: Tell = lambda *_: None,
) -> PruningPlan:
    """A plan that `planner.make_plan` made with the same arguments, with the reasons for it."""
    budgets = ({"latency": plan.budget_ratio} if plan.budget_ratio is not None else {}) | (plan.budgets or {})
    problem = Problem.of(profile, validation, damage)
    problem = loads_in.ruled(problem, plan.loads_in) if plan.loads_in else problem
    chosen, proof = problem.chosen(plan.edits), plan.proof
    assert chosen is not None, "a plan that was made a moment ago is made of the problem's choices"
    assert proof is not None, "and it is proved"
    solution = Solution(tuple(chosen), proof.damage, proof.bound, proof.gap)
    below = planner.margin(profile, confidence, validation)
    return plan.model_copy(update={"why": explain(problem, solution, budgets, below, tell)})


def _flat(rows: Mapping[str, Sequence[Row]], without: str = "") -> list[Row]:
    return [row for name, own in rows.items() if name != without for row in own]


def _binds(problem: Problem, solution: Solution, rows: Mapping[str, Sequence[Row]], name: str) -> bool:
    free = best(problem, _flat(rows, without=name), fastest=False)
    return free is not None and free.damage < solution.damage - TIE


def unit_of(problem: Problem, name: str) -> tuple[float, str]:
    """The unit of a budget's price: how many of it the whole teacher has, and its name."""
    whole = problem.profile.whole
    return {
        "latency": (whole.latency_s.median * 1e3, "ms"),
        "macs": (whole.macs / 1e9, "GMAC"),
        "params": (whole.params / 1e6, "M parameters"),
        "memory": (memory_bytes(problem.profile) / 2**20, "MiB"),
    }[name]


def _shadow_price(problem: Problem, solution: Solution, rows: Mapping[str, Sequence[Row]], name: str) -> ShadowPrice:
    whole, unit = unit_of(problem, name)
    if not rows[name]:  # the whole teacher's
        return ShadowPrice(damage=0.0, per=unit, slack=0.0)
    programme = Rows.of(problem, [*_flat(rows, without=name), *rows[name]])
    duals = programme.duals(programme.damage, len(rows[name]))
    slack = min(sum(row.get(i, 0.0) for i in solution.chosen) - low for row, low, _ in rows[name])
    step, saves = _next_step(problem, solution, rows, name)
    return ShadowPrice(
        damage=max(0.0, sum(duals)) / programme.scale / whole,
        per=unit,
        slack=slack * whole,
        next_step=None if step is None else step * whole,
        next_saves=saves,
    )


def _next_step(
    problem: Problem, solution: Solution, rows: Mapping[str, Sequence[Row]], name: str
) -> tuple[float | None, float | None]:
    """The smallest increase of a budget, as a share of the teacher's, that lowers the damage, and by how much."""
    if solution.damage <= TIE:
        return None, None
    programme = Rows.of(problem, _flat(rows, without=name))
    slack = programme.helper(whole=False)
    for coefficients, low, high in rows[name]:
        programme.add({**coefficients, slack: 1.0}, low, high)
    limit = programme.scale * solution.damage
    programme.add(dict(enumerate(programme.damage)), -np.inf, limit - max(1e-6 * limit, SOLVER_TOLERANCE))
    optimum = programme.minimise({slack: 1.0})
    if optimum is None:
        return None, None
    step = float(optimum.fun)
    eased = [(coefficients, low - step - 1e-9, high) for coefficients, low, high in rows[name]]
    after = best(problem, [*_flat(rows, without=name), *eased], fastest=False)
    return step, solution.damage - after.damage if after else None


def _regrets(
    problem: Problem, solution: Solution, budgets: Iterable[str], rows: Sequence[Row], tell: Tell
) -> list[Regret]:
    """For every unit, the best plan that treats it differently from this one."""
    choices = problem.choices
    units = [u.fqn for u in problem.profile.topology.units if any(u.fqn in c.touches for c in choices)]
    regrets = []
    for n, fqn in enumerate(units):
        tell("weighing other choices", n, None)
        own = next((i for i in solution.chosen if fqn in choices[i].touches), None)
        if own is None:
            forced: Row = ({i: 1.0 for i, c in enumerate(choices) if fqn in c.touches}, 1, np.inf)
        else:
            forced = ({own: 1.0}, -np.inf, 0)
        without = problem.dominated(budgets, but=fqn)
        other = best(problem, [*rows, forced], fastest=False, without=without)
        regrets.append(
            Regret(
                unit=fqn,
                choice="keep" if own is None else str(choices[own]),
                other=_choice_for(problem, other, fqn) if other else None,
                damage=other.damage - solution.damage if other else None,
            )
        )
    return regrets


def _choice_for(problem: Problem, solution: Solution, fqn: str) -> str:
    own = next((i for i in solution.chosen if fqn in problem.choices[i].touches), None)
    return "keep" if own is None else str(problem.choices[own])
