"""The whole exact (latency, damage) frontier at once, the k best plans, and k diverse ones (docs/methods/planner.md).

The frontier is a merge with dominance. Decisions are taken one after the other: layers of a mirrored pair of blocks,
then each of their units. A partial plan is dropped if another one saves as much for no more damage *and* both leave
later decisions the same state (which layers are gone, which neighbours are paired). Nothing is rounded and nothing is
sampled, so what is left at the end is every plan that no other beats in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asdm_prof.planner import milp, plan
from asdm_prof.planner.budgets import budget_rows
from asdm_prof.planner.milp import Solution
from asdm_prof.planner.problem import Problem, Row
from asdm_prof.records import Damage, Frontier, FrontierPoint, Profile, Validation

STEPS = 60  # plans at most where other budgets make the frontier a walk from plan to plan
FRONT = ("latency", "macs", "params")  # what can stand against damage


# ---------------------------------------------------------------------------------------------- the frontier


def make_frontier(
    profile: Profile,
    damage: Damage | None = None,
    by: str = "latency",
    asked: Mapping[str, str] | None = None,
    k: int = 0,
    diverse: int = 0,
    apart: int = 3,
    confidence: float = 0.95,
    validation: Validation | None = None,
    programs: Sequence[str] = (),
) -> Frontier:
    """The whole frontier of `by` against damage, and the `k` best and `diverse` unlike plans within budgets.

    Budgets other than that of `by`, and `programs` that are to load the students, constrain the frontier too; it is
    then stepped through and not complete. Raises ValueError for invalid arguments, planner.Infeasible for budgets that
    no plan meets.
    """
    asked = dict(asked or {})
    if by not in FRONT:
        raise ValueError(f"unknown measure {by!r} for --by; choose from {', '.join(FRONT)}.")
    if (k or diverse) and not asked:
        raise ValueError("the best plans need a budget; give one or more of --budget, --macs, --params, --memory.")
    problem, budgets, below = plan.prepare(profile, asked or {by: "1.0"}, confidence, validation, damage, programs)
    others = {name: share for name, share in budgets.items() if name != by}
    stepped = bool(others or programs)
    frontier = stepped_frontier(problem, others, by, STEPS, below) if stepped else exact_frontier(problem, by)

    def points(solutions: Sequence[Solution]) -> tuple[FrontierPoint, ...]:
        return tuple(_point(problem, solution, validation) for solution in solutions)

    return Frontier(
        family=profile.family,
        teacher_config_sha256=profile.config_sha256,
        by=by,
        budgets=budgets if asked else {},
        complete=not stepped,
        loads_in=tuple(programs),
        damage_from=plan.MEASURED if damage else plan.STRUCTURAL_PRIOR,
        profile_sha256=profile.sha256(),
        damage_sha256=damage.sha256() if damage else None,
        points=points(frontier),
        best=points(k_plans(problem, budgets, below, k)) if k else (),
        diverse=points(k_plans(problem, budgets, below, diverse, apart)) if diverse else (),
        apart=apart,
    )


def fastest_within(
    profile: Profile,
    most: float,
    confidence: float = 0.95,
    validation: Validation | None = None,
    damage: Damage | None = None,
    programs: Sequence[str] = (),
) -> str:
    """The latency budget of the fastest plan that does at most `most` damage; raises plan.TooMuchDamage without one."""
    problem, _, below = plan.prepare(profile, {"latency": "1.0"}, confidence, validation, damage, programs)
    solutions = stepped_frontier(problem, {}, "latency", STEPS, below) if programs else exact_frontier(problem)
    shares = {solution: 1 - sum(problem.choices[i].saving for i in solution.chosen) for solution in solutions}
    faster = [solution for solution, share in shares.items() if share + below <= 1]  # surely, at this confidence
    allowed = [solution for solution in faster if solution.chosen and solution.damage <= most]
    if not allowed:
        raise plan.TooMuchDamage(min((one.damage for one in faster if one.chosen), default=math.inf), most)
    share = min(shares[solution] for solution in allowed)
    return f"{math.ceil((share + below) * 1e6) / 1e6:.6f}"


def _point(problem: Problem, solution: Solution, validation: Validation | None) -> FrontierPoint:
    edits = problem.edits(solution.chosen)
    predicted = plan.price(problem.profile, edits, validation)
    return FrontierPoint(
        latency_s=predicted.latency_s,
        ratio=predicted.ratio,
        macs=1 - sum(problem.choices[i].macs for i in solution.chosen),
        params=1 - sum(problem.choices[i].params for i in solution.chosen),
        damage=solution.damage,
        edits=edits,
    )


# ---------------------------------------------------------------------------------------------- decisions


Decision = tuple[int, ...]  # exclusive options, each a choice by its column; taking none is always one


def decisions(problem: Problem) -> list[Decision]:
    """The decisions in an order that keeps dependent ones close together: pair of blocks by pair of blocks."""
    shape, choices = problem.profile.topology, problem.choices
    whole_blocks = tuple(i for i, c in enumerate(choices) if c.edit.op == "remove_block")
    ordered = [whole_blocks] if whole_blocks else []
    downs = list(reversed(shape.down_blocks))
    groups = [[b, shape.mirror(b)] for b in downs]
    groups[0].insert(1, "mid_block")
    for down, group in zip(downs, groups, strict=True):
        if sets := problem.layer_sets.get(down):
            ordered.append(tuple(sets))
        for unit in sorted((u for u in shape.units if u.block in group), key=lambda u: (u.block, u.kind, u.layer)):
            if own := tuple(i for i, c in enumerate(choices) if c.touches == {unit.fqn} and hasattr(c.edit, "unit")):
                ordered.append(own)
    return ordered


@dataclass
class _Partial:
    """Partial plans: what they save and cost, and which columns they take (n, columns)."""

    saving: np.ndarray
    damage: np.ndarray
    taken: np.ndarray

    def pick(self, rows: np.ndarray) -> _Partial:
        return _Partial(self.saving[rows], self.damage[rows], self.taken[rows])


def exact_frontier(problem: Problem, by: str = "latency") -> list[Solution]:
    """Every plan that no other beats in both damage and its saving of `by`, the teacher first.

    `by` is latency, macs or params.
    """
    saves = np.array([{"latency": c.saving, "macs": c.macs, "params": c.params}[by] for c in problem.choices])
    rules = _Rules(problem)
    partial = _Partial(np.zeros(1), np.zeros(1), np.zeros((1, len(problem.choices)), dtype=bool))
    needless = problem.dominated([by])
    ordered = [tuple(i for i in decision if i not in needless) for decision in decisions(problem)]
    for n, decision in enumerate(ordered):
        later = {i for other in ordered[n + 1 :] for i in other}
        partial = _undominated(rules.close(_taken(partial, decision, saves, rules), later), rules.open_columns(later))
    order = np.argsort(partial.saving, kind="stable")
    chosen = [tuple(np.flatnonzero(partial.taken[row]).tolist()) for row in order]
    damages = [problem.damage(one) for one in chosen]
    return [Solution(one, damage, damage, 0.0) for one, damage in zip(chosen, damages, strict=True)]


def _taken(partial: _Partial, decision: Decision, saves: np.ndarray, rules: _Rules) -> _Partial:
    """Every partial plan without the decision, and with each of its options that is legal."""
    parts = [partial]
    for option in decision:
        rows = np.flatnonzero(~partial.taken[:, rules.conflicts[option]].any(axis=1))
        taken = partial.taken[rows].copy()
        extra = np.full(len(rows), rules.damage[option])
        for other, damage in rules.pairs.get(option, ()):
            extra += damage * taken[:, other]
        taken[:, option] = True
        parts.append(_Partial(partial.saving[rows] + saves[option], partial.damage[rows] + extra, taken))
    return _Partial(
        np.concatenate([p.saving for p in parts]),
        np.concatenate([p.damage for p in parts]),
        np.concatenate([p.taken for p in parts]),
    )


class _Rules:
    """How decisions depend on each other."""

    def __init__(self, problem: Problem) -> None:
        choices = problem.choices
        self.damage = np.array([choice.damage for choice in choices])
        self.conflicts = [
            np.array([j for j, other in enumerate(choices) if j != i and choice.touches & other.touches], dtype=int)
            for i, choice in enumerate(choices)
        ]
        self.pairs: dict[int, list[tuple[int, float]]] = {}
        for pair in problem.pairs:
            self.pairs.setdefault(pair.first, []).append((pair.second, pair.damage))
            self.pairs.setdefault(pair.second, []).append((pair.first, pair.damage))
        self.hosts, self.experts = list(problem.hosts), list(problem.experts)

    def open_columns(self, later: set[int]) -> np.ndarray:
        """Decided columns that a later decision depends on."""
        columns = {int(j) for i in later for j in self.conflicts[i]}
        columns |= {j for i in later for j, _ in self.pairs.get(i, ())}
        for group in self._groups():
            if later & group:
                columns |= group
        return np.array(sorted(columns - later), dtype=int)

    def _groups(self) -> Iterator[set[int]]:
        yield from ({host, *needs} for host, needs in self.hosts)
        yield from ({*e.pruned, *e.takers} for e in self.experts)

    def close(self, partial: _Partial, later: set[int]) -> _Partial:
        """Settle fully decided dependencies: drop hosts without a pruned neighbour, credit what experts recover."""
        for host in [h for h in self.hosts if not later & {h[0], *h[1]}]:
            self.hosts.remove(host)
            needs = partial.taken[:, list(host[1])].any(axis=1)
            partial = partial.pick(np.flatnonzero(~partial.taken[:, host[0]] | needs))
        for experts in [e for e in self.experts if not later & {*e.pruned, *e.takers}]:
            self.experts.remove(experts)
            pruned, takers = (partial.taken[:, list(one)].any(axis=1) for one in (experts.pruned, experts.takers))
            partial = _Partial(partial.saving, partial.damage - experts.damage * (pruned & takers), partial.taken)
        return partial


def _undominated(partial: _Partial, open_columns: np.ndarray) -> _Partial:
    """Drop partial plans that another one with the same open columns beats or equals in both."""
    if len(open_columns):
        packed = np.packbits(partial.taken[:, open_columns], axis=1)
        _, state = np.unique(packed, axis=0, return_inverse=True)
        state = state.reshape(-1)
    else:
        state = np.zeros(len(partial.saving), dtype=int)
    saving, damage = (_rounded(values) for values in (partial.saving, partial.damage))
    order = np.lexsort((damage, -saving, state))
    _, rank = np.unique(damage, return_inverse=True)
    # A running minimum of damage, restarted in each state: states are stacked, each wholly below the one before.
    stacked = rank.reshape(-1)[order] - state[order] * (len(rank) + 1)
    before = np.concatenate([[np.iinfo(np.int64).max], np.minimum.accumulate(stacked)[:-1]])
    return partial.pick(order[stacked < before])


def _rounded(values: np.ndarray) -> np.ndarray:
    """Values rounded so that sums of the same numbers in another order compare equal."""
    return np.round(values / max(float(np.abs(values).max()), 1e-300), 12)


# ---------------------------------------------------------------------------------------------- under more budgets


def stepped_frontier(
    problem: Problem, budgets: Mapping[str, float], by: str, steps: int, below: float = 0.0
) -> list[Solution]:
    """Exact plans along the frontier under other budgets, at `steps` equal steps of `by`, each with its own proof.

    Raises planner.Infeasible if no plan meets the budgets.
    """
    rows = _flat(problem, budgets, below)
    lowest = milp.most_saved(problem, by, rows)
    if lowest is None:
        raise plan.infeasible(problem, budgets, below)
    by_choices: dict[tuple[int, ...], Solution] = {}
    for share in np.linspace(1.0, lowest, steps):
        solution = milp.best(problem, [*rows, *_flat(problem, {by: min(1.0, float(share) + 1e-9)})])
        if solution is not None:
            by_choices.setdefault(solution.chosen, solution)
    return list(by_choices.values())


def _flat(problem: Problem, budgets: Mapping[str, float], below: float = 0.0) -> list[Row]:
    return [row for rows in budget_rows(problem, budgets, below).values() for row in rows]


# ---------------------------------------------------------------------------------------------- k plans


def k_plans(problem: Problem, budgets: Mapping[str, float], below: float, k: int, apart: int = 1) -> list[Solution]:
    """The best plan within budgets, then repeatedly the best that differs from all before in at least `apart` choices.

    With `apart` 1 these are the k best. Each is proved optimal; there are fewer than k if no more exist. Choices that
    make the same student (the middle block, or its units one by one) appear once, as the better of them. Raises
    planner.Infeasible if there is none.
    """
    rows = _flat(problem, budgets, below)
    without = problem.dominated(budgets, k) if apart == 1 else ()  # each of k dominators makes a better plan
    solutions: list[Solution] = []
    students: set[object] = set()
    while len(solutions) < k:
        solution = milp.best(problem, rows, fastest=False, without=without)
        if solution is None:
            break
        student = problem.student(solution.chosen)
        rows.append(apart_row(problem, solution, 1 if student in students else apart))
        if student not in students:
            students.add(student)
            solutions.append(solution)
    if not solutions:
        raise plan.infeasible(problem, budgets, below)
    return solutions


def apart_row(problem: Problem, solution: Solution, apart: int) -> Row:
    """A plan must differ from this one in at least `apart` choices."""
    chosen = set(solution.chosen)
    return {i: -1.0 if i in chosen else 1.0 for i in range(len(problem.choices))}, apart - len(chosen), np.inf
