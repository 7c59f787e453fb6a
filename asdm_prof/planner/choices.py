"""What a plan may choose from, what each choice saves and costs, and the integer programme over it (DESIGN §6).

A choice is one edit, or the edits that are legal only together: layers of mirrored blocks, the deepest pair with the
middle block. Damage is measured where there is a file of it (`asdm-prof sensitivity`), else it is the structural prior.

The structural prior is the paper's reading of its Fig. 2, that a unit of much latency and few parameters is redundant,
as a number: the damage of an edit is the share of all parameters whose use is lost. A removed unit loses all of its
parameters; a replaced one keeps them and loses as much of their use as it saves convolution and linear MACs (the
attention core has no parameters, so making it cheaper costs little). A ResNet's parameters count double: the paper says
that convolution does the key work where features are shallow, and attention is relatively redundant (§2.3); it gives no
number, and two is our guess. Where a pruned ResNet's kernels are experts of a neighbour (CLME-CondConv, §2.3), half of
what they lose comes back: they are used again, in another place. The half is our guess too.

Measured damage knows no experts: they start as the unit that they replace, and what they are worth shows in training.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp
from scipy.sparse import csr_array

from asdm.plan.edits import AnyEdit, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.legality import is_legal_flow, legal_layer_sets, resolve, why_no_identity
from asdm.plan.topology import UnitShape
from asdm_prof.records import Damage, PartRecord, Profile, Validation

CONVOLUTION_WEIGHT = 2.0
EXPERTS = "cond_conv"
RECOVERED_BY_EXPERTS = 0.5
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SOLVER_TOLERANCE = 1e-4  # HiGHS takes what is 1e-6 off for equal, so damages are scaled to be far above that
LARGEST_COST = 1e6
BUDGETS = ("latency", "macs", "params", "memory")

Row = tuple[Mapping[int, float], float, float]  # coefficients by column, least, most


# ---------------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class Choice:
    """Edits that a plan makes together: what they save (shares of the teacher) and what they cost."""

    edits: tuple[AnyEdit, ...]
    touches: frozenset[str]  # fqns of the units that it decides on
    saving: float  # of the latency
    damage: float
    macs: float = 0.0
    params: float = 0.0

    @property
    def edit(self) -> AnyEdit:
        """The first edit, of the kind (`op`) of them all."""
        return self.edits[0]

    def __str__(self) -> str:
        return " and ".join(map(str, self.edits))


def choices(profile: Profile, validation: Validation | None = None, damage: Damage | None = None) -> list[Choice]:
    """Every legal choice on a profile's UNet with its price, in a fixed order; savings as a validation corrects them.

    With measured damage, those that were measured.
    """
    factors = validation.factors if validation else {}
    found = [replace(c, saving=c.saving * (1 - factors.get(c.edit.op, 0.0))) for c in _choices(profile)]
    if damage is None:
        return found
    measured = {key(one.edits): one.damage.value for one in damage.edits}
    return [replace(c, damage=measured[key(c.edits)]) for c in found if key(c.edits) in measured]


def key(edits: Sequence[AnyEdit]) -> frozenset[str]:
    """What tells sets of edits apart, whatever their order."""
    return frozenset(edit.model_dump_json(by_alias=True) for edit in edits)


def _choices(profile: Profile) -> list[Choice]:
    shape = profile.topology
    found = [_remove_unit(profile, unit.fqn) for unit in shape.units if not why_no_identity(shape, unit)]
    found += [_replace_unit(profile, i) for i in range(len(profile.options))]
    for down in shape.down_blocks:
        for removed in legal_layer_sets(shape, down)[1:]:
            fqns = [unit.fqn for layer in removed for unit in shape.layer_units(*layer)]
            edits = tuple(RemoveLayer(block=block, layer=layer) for block, layer in removed)
            found.append(_removal(profile, edits, fqns, fqns))
    return found + list(_block_choices(profile))


def _block_choices(profile: Profile) -> Iterator[Choice]:
    """The middle block, and with it the deepest pair, where their neighbours' channels fit without them."""
    shape = profile.topology
    mid = ("mid_block",) if "mid_block" in shape.blocks else ()
    pair = (shape.down_blocks[-1],) if len(shape.down_blocks) > 1 else ()
    for blocks in ((*mid,), (*pair, *mid)) if pair else ((*mid,),):
        removed = {*blocks, *(shape.mirror(block) for block in blocks if block != "mid_block")}
        if blocks and is_legal_flow(shape, removed, ()):
            edits = tuple(RemoveBlock(block=block) for block in blocks)
            gone = resolve(shape, edits).gone
            yield _removal(profile, edits, [unit.fqn for unit in shape.units if unit.block in removed], gone)


def _remove_unit(profile: Profile, fqn: str) -> Choice:
    return _removal(profile, (RemoveUnit(unit=fqn),), [fqn], [fqn])


def _removal(profile: Profile, edits: tuple[AnyEdit, ...], touches: Sequence[str], gone: Sequence[str]) -> Choice:
    parts, whole = [profile.part(fqn) for fqn in gone], profile.whole
    return Choice(
        edits=edits,
        touches=frozenset(touches),
        saving=sum(part.share.median for part in parts),
        damage=sum(_worth(part) for part in parts) / whole.params,
        macs=sum(part.macs for part in parts) / max(whole.macs, 1),
        params=sum(part.params for part in parts) / whole.params,
    )


def _replace_unit(profile: Profile, index: int) -> Choice:
    option, whole = profile.options[index], profile.whole
    unit = profile.part(option.unit)
    lost_use = 1 - (option.conv_macs + option.linear_macs) / (unit.conv_macs + unit.linear_macs)
    return Choice(
        edits=(ReplaceUnit(unit=option.unit, with_=option.replacement),),
        touches=frozenset([option.unit]),
        saving=unit.share.median - option.share.median,
        damage=max(lost_use, 0.0) * _worth(unit) / whole.params,
        macs=(unit.macs - option.macs) / max(whole.macs, 1),
        params=(unit.params - option.params) / whole.params,
    )


def _worth(part: PartRecord) -> float:
    return part.params * (CONVOLUTION_WEIGHT if part.kind == "resnet" else 1.0)


# ---------------------------------------------------------------------------------------------- the problem


@dataclass(frozen=True)
class Pair:
    """What two choices cost beyond the sum of both, where they are made together."""

    first: int
    second: int
    damage: float


@dataclass(frozen=True)
class Experts:
    """Pruned kernels that a neighbour takes as its experts: what comes back where one of each list is chosen."""

    pruned: tuple[int, ...]
    takers: tuple[int, ...]
    damage: float


@dataclass(frozen=True)
class Problem:
    """Choices of one profile, and what holds between them."""

    profile: Profile
    found: tuple[Choice, ...]
    pairs: tuple[Pair, ...] = ()
    hosts: tuple[tuple[int, tuple[int, ...]], ...] = ()  # a choice, and those of which it needs one
    experts: tuple[Experts, ...] = ()

    @classmethod
    def of(cls, profile: Profile, validation: Validation | None = None, damage: Damage | None = None) -> Problem:
        found = tuple(choices(profile, validation, damage))
        if damage is not None:
            columns = {key(choice.edits): i for i, choice in enumerate(found)}
            at = [columns.get(key(one.edits)) for one in damage.edits]
            pairs = [(at[pair.first], at[pair.second], pair.damage) for pair in damage.pairs]
            return cls(profile, found, tuple(Pair(a, b, d) for a, b, d in pairs if a is not None and b is not None))
        return cls(profile, found, (), *_experts(profile, found))

    @property
    def saving(self) -> list[float]:
        return [choice.saving for choice in self.found]

    @cached_property
    def layer_sets(self) -> dict[str, list[int]]:
        """Down block → the choices that take layers of it and its mirror: a plan makes one of them at most."""
        sets: dict[str, list[int]] = {}
        for i, choice in enumerate(self.found):
            if isinstance(choice.edit, RemoveLayer):
                sets.setdefault(choice.edit.block, []).append(i)
        return sets

    def damage(self, chosen: Sequence[int]) -> float:
        """Damage of choices made together: their sum, with pairs and what experts bring back."""
        made = set(chosen)
        total = sum(self.found[i].damage for i in sorted(made))
        total += sum(pair.damage for pair in self.pairs if {pair.first, pair.second} <= made)
        return total - sum(e.damage for e in self.experts if made & {*e.pruned} and made & {*e.takers})

    def edits(self, chosen: Sequence[int]) -> tuple[AnyEdit, ...]:
        return tuple(edit for i in sorted(chosen) for edit in self.found[i].edits)

    def student(self, chosen: Sequence[int]) -> object:
        """What choices make of the teacher, however they are put: the units that go, and how others are replaced."""
        made = [self.found[i] for i in chosen]
        replaced = [c for c in made if isinstance(c.edit, ReplaceUnit)]
        gone = frozenset(fqn for c in made if c not in replaced for fqn in c.touches)
        return gone, key([edit for c in replaced for edit in c.edits])

    def chosen(self, edits: Sequence[AnyEdit]) -> list[int] | None:
        """The choices that make up a plan's edits, or None where they are none of these."""
        left, made = {*key(edits)}, []
        for i in sorted(range(len(self.found)), key=lambda i: -len(self.found[i].edits)):
            if (one := key(self.found[i].edits)) <= left:
                left -= one
                made.append(i)
        return None if left else sorted(made)


def _experts(
    profile: Profile, found: Sequence[Choice]
) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], tuple[Experts, ...]]:
    """Which choices are hosts of experts and need a pruned neighbour, and what each pruned kernel brings back there."""
    hosts = {c.edit.unit: i for i, c in enumerate(found) if isinstance(c.edit, ReplaceUnit) and c.edit.with_ == EXPERTS}
    resnets = {unit.fqn: unit for unit in profile.topology.units if unit.kind == "resnet"}
    pruned = {fqn: _removers(found, fqn) for fqn in resnets}

    def beside(fqn: str) -> list[str]:
        return [other for other in resnets if other != fqn and resnets[other].block == resnets[fqn].block]

    needs = []
    for host, column in hosts.items():
        neighbours = itertools.chain.from_iterable(pruned[fqn] for fqn in beside(host))
        needs.append((column, tuple(sorted(set(neighbours)))))
    worth = []
    for fqn, unit in resnets.items():
        for place, kernel in enumerate(_kernels(unit)):
            takers = [
                hosts[other] for other in beside(fqn) if other in hosts and _kernels(resnets[other])[place] == kernel
            ]
            if takers and pruned[fqn]:
                lost = CONVOLUTION_WEIGHT * 9 * math.prod(kernel) / profile.whole.params
                worth.append(Experts(tuple(pruned[fqn]), tuple(takers), RECOVERED_BY_EXPERTS * lost))
    return tuple(needs), tuple(worth)


def _removers(found: Sequence[Choice], fqn: str) -> list[int]:
    """The columns of the choices that prune a unit and leave its block."""
    return [i for i, c in enumerate(found) if fqn in c.touches and isinstance(c.edit, RemoveLayer | RemoveUnit)]


def _kernels(unit: UnitShape) -> tuple[tuple[int, int], tuple[int, int]]:
    """Channels in and out of a ResNet's two 3×3 convolutions."""
    return (unit.channels_in, unit.channels_out), (unit.channels_out, unit.channels_out)


# ---------------------------------------------------------------------------------------------- budgets as rows


def memory_bytes(profile: Profile, params: float = 0.0, gone: frozenset[str] = frozenset()) -> int:
    """Weights and the largest activations of one call, where a share of the parameters and some units are gone.

    Activations of a part that stays are taken as the teacher's, so for a student this is an upper bound.
    """
    parts = [part.peak_memory_bytes for part in profile.parts if part.fqn not in gone]
    return round(BYTES[profile.dtype] * profile.whole.params * (1 - params)) + max(parts, default=0)


def budget_rows(problem: Problem, budgets: Mapping[str, float], below: float = 0.0) -> dict[str, list[Row]]:
    """Budgets, as shares of the teacher's, as rows over the choices; the latency stays `below` its budget.

    Each row is written so that a smaller budget is a larger lower bound; the whole teacher's needs none.
    """
    found, rows = problem.found, dict[str, list[Row]]()
    for name, share in budgets.items():
        if share >= 1:
            rows[name] = []
            continue
        if name == "memory":
            rows[name] = list(_memory_rows(problem, share))
            continue
        saves = {i: {"latency": c.saving, "macs": c.macs, "params": c.params}[name] for i, c in enumerate(found)}
        rows[name] = [(saves, 1 - share + (below if name == "latency" else 0.0), np.inf)]
    return rows


def _memory_rows(problem: Problem, share: float) -> Iterator[Row]:
    """A row for every unit that may go: weights, and its activations where it stays; in shares of the teacher's."""
    profile, found = problem.profile, problem.found
    whole = memory_bytes(profile)
    weights = BYTES[profile.dtype] * profile.whole.params / whole
    saves = {i: weights * c.params for i, c in enumerate(found)}
    least = weights + max((part.peak_memory_bytes for part in profile.glue), default=0) / whole - share
    yield saves, least, np.inf
    for unit in profile.units:
        goes = {i: unit.peak_memory_bytes / whole for i, c in enumerate(found)
                if unit.fqn in c.touches and not isinstance(c.edit, ReplaceUnit)}  # fmt: skip
        both = {i: saves[i] + goes.get(i, 0.0) for i in saves}
        yield both, weights + unit.peak_memory_bytes / whole - share, np.inf


# ---------------------------------------------------------------------------------------------- solving


@dataclass(frozen=True)
class Solution:
    """Choices made, their damage, and the solver's certificate."""

    chosen: tuple[int, ...]
    damage: float
    bound: float
    gap: float


def best(problem: Problem, rows: Sequence[Row], fastest: bool = True) -> Solution | None:
    """Least damage under the rows; with `fastest`, among plans of that damage the fastest. None: no legal plan."""
    programme = Rows.of(problem, rows)
    damage = programme.damage
    found = programme.minimise(damage)
    if found is None:
        return None
    chosen = _made(problem, found)
    if fastest:
        programme.add(dict(enumerate(damage)), -np.inf, found.fun + max(abs(found.fun) * 1e-9, SOLVER_TOLERANCE))
        last = programme.minimise([-s for s in problem.saving])
        least = problem.damage(chosen)  # experts may bring back more than is lost: it can be below 0
        if last is not None and problem.damage(_made(problem, last)) <= least + 1e-9 * abs(least):
            chosen = _made(problem, last)
    bound = float(found.mip_dual_bound) / programme.scale
    return Solution(chosen, problem.damage(chosen), bound, max(0.0, float(found.mip_gap)))


def _made(problem: Problem, found: OptimizeResult) -> tuple[int, ...]:
    return tuple(i for i in range(len(problem.found)) if found.x[i] > 0.5)


def most_saved(problem: Problem, name: str, rows: Sequence[Row] = ()) -> float | None:
    """The least share of the teacher's latency, MACs, parameters or memory that a legal plan reaches under the rows."""
    programme = Rows.of(problem, rows)
    slack = programme.helper(whole=False)
    for coefficients, low, _ in budget_rows(problem, {name: 0.0})[name]:
        programme.add({**coefficients, slack: 1.0}, low, np.inf)
    cost = np.zeros(programme.columns)
    cost[slack] = 1.0
    found = programme.minimise(cost)
    return None if found is None else float(found.fun)


def relaxed(problem: Problem, budgets: Mapping[str, float], below: float) -> dict[str, float]:
    """The budgets that could all be met by one plan, where their increases over those asked for add up to the least."""
    programme = Rows.of(problem)
    slacks = {name: programme.helper(whole=False) for name in budgets}
    for name, rows in budget_rows(problem, budgets, below).items():
        for coefficients, low, high in rows:
            programme.add({**coefficients, slacks[name]: 1.0}, low, high)
    cost = np.zeros(programme.columns)
    cost[list(slacks.values())] = 1.0
    found = programme.minimise(cost)
    assert found is not None, "with budgets of the whole teacher there is a plan"
    return {name: budgets[name] + float(found.x[column]) for name, column in slacks.items()}


class Rows:
    """Constraints of one integer programme; columns after the first `n` are helpers."""

    def __init__(self, n: int) -> None:
        self.columns = n
        self.scale = 1.0
        self.rows: list[Row] = []
        self.real: list[int] = []  # columns that need not be 0 or 1
        self.costs: dict[int, float] = {}

    @classmethod
    def of(cls, problem: Problem, rows: Sequence[Row] = ()) -> Rows:
        """The legal choices of a problem, under `rows` over them."""
        found = problem.found
        made = cls(len(found))
        made.costs = {i: choice.damage for i, choice in enumerate(found)}
        for fqn in sorted({fqn for choice in found for fqn in choice.touches}):
            made.add({i: 1.0 for i, choice in enumerate(found) if fqn in choice.touches}, 0, 1)
        for sets in problem.layer_sets.values():
            made.add(dict.fromkeys(sets, 1.0), 0, 1)
        made._add_experts(problem)
        made._add_pairs(problem.pairs)
        made.scale = LARGEST_COST / max((abs(cost) for cost in made.costs.values() if cost), default=1.0)
        for row in rows:
            made.add(*row)
        return made

    def _add_experts(self, problem: Problem) -> None:
        for host, needs in problem.hosts:
            self.add({host: 1.0} | dict.fromkeys(needs, -1.0), -np.inf, 0)
        for experts in problem.experts:
            column = self.helper(-experts.damage)
            for needed in (experts.pruned, experts.takers):
                self.add({column: 1.0} | dict.fromkeys(needed, -1.0), -np.inf, 0)

    def _add_pairs(self, pairs: Sequence[Pair]) -> None:
        """A product of two choices, linearised: a column that is 1 where both are, pressed by its cost."""
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
        costs = np.zeros(self.columns)
        costs[list(self.costs)] = list(self.costs.values())
        return costs * self.scale

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
        return csr_array((v, (i, j)), shape=(len(self.rows), self.columns))

    def _objective(self, cost: Sequence[float] | np.ndarray) -> np.ndarray:
        objective = np.zeros(self.columns)
        objective[: len(cost)] = cost
        return objective

    def minimise(self, cost: Sequence[float] | np.ndarray) -> OptimizeResult | None:
        """The optimum with its proof, or None where nothing is legal."""
        whole = np.ones(self.columns, dtype=int)
        whole[self.real] = 0
        limits = LinearConstraint(self._matrix(), [row[1] for row in self.rows], [row[2] for row in self.rows])
        with _silent_stdout():
            result = milp(
                self._objective(cost),
                integrality=whole,
                bounds=Bounds(0, 1),
                constraints=limits,
                options={"mip_rel_gap": 0.0, "disp": False},
            )
        if result.status == 2:
            return None
        assert result.success, f"the solver stopped: {result.message}"
        return result

    def duals(self, cost: np.ndarray, rows: int) -> list[float]:
        """What a unit more of each of the last `rows` lower bounds costs, by the relaxation to fractions of choices."""
        matrix = self._matrix().toarray()
        low, high = (np.array([row[side] for row in self.rows]) for side in (1, 2))
        above, under = np.isfinite(low), np.isfinite(high)
        upper = np.vstack([-matrix[above], matrix[under]])
        limits = np.concatenate([-low[above], high[under]])
        with _silent_stdout():
            result: Any = linprog(self._objective(cost), A_ub=upper, b_ub=limits, bounds=(0, 1), method="highs")
        if result.status != 0:
            return [0.0] * rows
        of_low = np.zeros(len(self.rows))
        of_low[above] = -result.ineqlin.marginals[: int(above.sum())]
        return [float(v) for v in of_low[len(self.rows) - rows :]]


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS prints past its own switch, and stdout may be somebody's JSON."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
