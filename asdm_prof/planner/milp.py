"""The integer programme over a problem's choices, solved with a proof (docs/methods/planner.md)."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp
from scipy.sparse import csr_array

from asdm_prof.planner.budgets import budget_rows
from asdm_prof.planner.problem import Pair, Problem, Row

SOLVER_TOLERANCE = 1e-4  # HiGHS treats a difference of 1e-6 as equality, so damages are scaled far above that
LARGEST_COST = 1e6


@dataclass(frozen=True)
class Solution:
    """The choices of a plan, their damage, and the solver's certificate."""

    chosen: tuple[int, ...]
    damage: float
    bound: float
    gap: float


def best(problem: Problem, rows: Sequence[Row], fastest: bool = True, without: Collection[int] = ()) -> Solution | None:
    """The plan of least damage under the rows; with `fastest`, the fastest plan of that damage. None: no legal plan.

    Choices in `without`, such as dominated ones, are not taken.
    """
    programme = Rows.of(problem, rows)
    programme.without = without
    damage = programme.damage
    optimum = programme.minimise(dict(enumerate(damage)))
    if optimum is None:
        return None
    chosen = _chosen(problem, optimum)
    if fastest:
        programme.add(dict(enumerate(damage)), -np.inf, optimum.fun + max(abs(optimum.fun) * 1e-9, SOLVER_TOLERANCE))
        least = problem.damage(chosen)  # experts may bring back more than is lost: it can be below 0
        again = programme.minimise({i: -saving for i, saving in enumerate(problem.saving)})
        if again is not None and problem.damage(_chosen(problem, again)) <= least + 1e-9 * abs(least):
            chosen = _chosen(problem, again)
    bound = float(optimum.mip_dual_bound) / programme.scale
    return Solution(chosen, problem.damage(chosen), bound, max(0.0, float(optimum.mip_gap)))


def _chosen(problem: Problem, optimum: OptimizeResult) -> tuple[int, ...]:
    return tuple(i for i in range(len(problem.choices)) if optimum.x[i] > 0.5)


def most_saved(problem: Problem, name: str, rows: Sequence[Row] = ()) -> float | None:
    """The least share of the teacher's latency, MACs, parameters or memory that a legal plan reaches under the rows."""
    programme = Rows.of(problem, rows)
    slack = programme.helper(whole=False)
    for coefficients, low, _ in budget_rows(problem, {name: 0.0})[name]:
        programme.add({**coefficients, slack: 1.0}, low, np.inf)
    optimum = programme.minimise({slack: 1.0})
    return None if optimum is None else float(optimum.fun)


def relaxed(problem: Problem, budgets: Mapping[str, float], below: float) -> dict[str, float]:
    """Budgets that one plan can meet together, where the sum of their increases over `budgets` is the least."""
    programme = Rows.of(problem)
    slacks = {name: programme.helper(whole=False) for name in budgets}
    for name, rows in budget_rows(problem, budgets, below).items():
        for coefficients, low, high in rows:
            programme.add({**coefficients, slacks[name]: 1.0}, low, high)
    optimum = programme.minimise(dict.fromkeys(slacks.values(), 1.0))
    assert optimum is not None, "with budgets of the whole teacher there is a plan"
    return {name: budgets[name] + float(optimum.x[column]) for name, column in slacks.items()}


class Rows:
    """Constraints of one integer programme; columns after the first `n` are auxiliary variables."""

    def __init__(self, n: int) -> None:
        self.columns = n
        self.scale = 1.0
        self.rows: list[Row] = []
        self.real: list[int] = []  # columns that may be fractional
        self.costs: dict[int, float] = {}
        self.without: Collection[int] = ()  # columns that must be 0

    @classmethod
    def of(cls, problem: Problem, rows: Sequence[Row] = ()) -> Rows:
        """The legal choices of a problem, under `rows` over them."""
        choices = problem.choices
        programme = cls(len(choices))
        programme.costs = {i: choice.damage for i, choice in enumerate(choices)}
        for fqn in sorted({fqn for choice in choices for fqn in choice.touches}):
            programme.add({i: 1.0 for i, choice in enumerate(choices) if fqn in choice.touches}, 0, 1)
        for sets in problem.layer_sets.values():
            programme.add(dict.fromkeys(sets, 1.0), 0, 1)
        programme._add_experts(problem)
        programme._add_pairs(problem.pairs)
        programme.scale = LARGEST_COST / max((abs(cost) for cost in programme.costs.values() if cost), default=1.0)
        for row in (*problem.rules, *rows):
            programme.add(*row)
        return programme

    def _add_experts(self, problem: Problem) -> None:
        for host, needs in problem.hosts:
            self.add({host: 1.0} | dict.fromkeys(needs, -1.0), -np.inf, 0)
        for experts in problem.experts:
            column = self.helper(-experts.damage)
            for needed in (experts.pruned, experts.takers):
                self.add({column: 1.0} | dict.fromkeys(needed, -1.0), -np.inf, 0)

    def _add_pairs(self, pairs: Sequence[Pair]) -> None:
        """Linearise products of two choices: an auxiliary column is 1 where both are taken, driven by its cost."""
        for pair in pairs:
            column = self.helper(pair.damage, whole=False)
            if pair.damage > 0:
                self.add({column: 1.0, pair.first: -1.0, pair.second: -1.0}, -1, np.inf)
            else:
                self.add({column: 1.0, pair.first: -1.0}, -np.inf, 0)
                self.add({column: 1.0, pair.second: -1.0}, -np.inf, 0)

    @property
    def damage(self) -> np.ndarray:
        """Costs of all columns, times `scale`."""
        return self._objective(self.costs) * self.scale

    def helper(self, cost: float = 0.0, whole: bool = True) -> int:
        self.columns += 1
        if cost:
            self.costs[self.columns - 1] = cost
        if not whole:
            self.real.append(self.columns - 1)
        return self.columns - 1

    def add(self, coefficients: Mapping[int, float], low: float, high: float) -> None:
        self.rows.append((coefficients, low, high))

    def _matrix(self) -> csr_array:
        entries = [(i, j, v) for i, (row, _, _) in enumerate(self.rows) for j, v in row.items()]
        i, j, v = zip(*entries, strict=True)
        where = np.array(i, np.int32), np.array(j, np.int32)  # what older releases of HiGHS's wrapper take
        return csr_array((v, where), shape=(len(self.rows), self.columns))

    def _objective(self, costs: Mapping[int, float]) -> np.ndarray:
        objective = np.zeros(self.columns)
        objective[list(costs)] = list(costs.values())
        return objective

    def minimise(self, costs: Mapping[int, float]) -> OptimizeResult | None:
        """The optimum under costs by column, with its proof, or None if no plan is legal."""
        whole = np.ones(self.columns, dtype=int)
        whole[self.real] = 0
        most = 2 - whole  # slacks need room: exactly 1 can be all that is left to them
        most[list(self.without)] = 0
        limits = LinearConstraint(self._matrix(), [row[1] for row in self.rows], [row[2] for row in self.rows])
        with _silent_stdout():
            result = milp(
                self._objective(costs),
                integrality=whole,
                bounds=Bounds(0, most),
                constraints=limits,
                options={"mip_rel_gap": 0.0, "disp": False},
            )
        if result.status == 2:
            return None
        assert result.success, f"the solver stopped: {result.message}"
        return result

    def duals(self, cost: np.ndarray, rows: int) -> list[float]:
        """The price of one unit more of each of the last `rows` lower bounds, by relaxation to fractions of choices."""
        matrix = self._matrix().toarray()
        low, high = (np.array([row[side] for row in self.rows]) for side in (1, 2))
        above, under = np.isfinite(low), np.isfinite(high)
        upper = np.vstack([-matrix[above], matrix[under]])
        limits = np.concatenate([-low[above], high[under]])
        with _silent_stdout():
            result: Any = linprog(cost, A_ub=upper, b_ub=limits, bounds=(0, 1), method="highs")
        if result.status != 0:
            return [0.0] * rows
        of_low = np.zeros(len(self.rows))
        of_low[above] = -result.ineqlin.marginals[: int(above.sum())]
        return [float(v) for v in of_low[len(self.rows) - rows :]]


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS prints even with `disp` off, and stdout may carry JSON."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
