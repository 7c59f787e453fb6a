"""The exact plan for a latency budget: which layers, units and blocks go, and which are replaced (DESIGN §6).

Minimise Σ damage·x subject to Σ latency·x ≤ budget − z·σ and the legality rules, by integer programming with a
proof. σ is one number: measured, where a validation is at hand (`asdm-prof validate`); otherwise an assumed error of
additivity and the unit times' standard errors, as if every unit were edited. Nothing here needs torch: everything
comes from files.

The structural prior stands in for damage where no weights and data are at hand. It is the paper's reading of its
Fig. 2, that a unit of much latency and few parameters is redundant, as a number: the damage of an edit is the share
of all parameters whose use is lost. A removed unit loses all of its parameters; a replaced one keeps them and loses
as much of their use as it saves convolution and linear MACs (the attention core has no parameters, so making it
cheaper costs little). A ResNet's parameters count double: the paper says that convolution does the key work where
features are shallow, and attention is relatively redundant (§2.3); it gives no number, and two is our guess.
Where a pruned ResNet's kernels are experts of a neighbour (CLME-CondConv, §2.3), half of what they lose comes back:
they are used again, in another place. The half is our guess too.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array
from scipy.stats import norm
from scipy.stats import t as student_t

from asdm.plan import (
    AnyEdit,
    Kept,
    MeasuredAt,
    Prediction,
    Proof,
    PruningPlan,
    RemoveBlock,
    RemoveLayer,
    RemoveUnit,
    ReplaceUnit,
    Topology,
    UnitShape,
    is_legal_flow,
    resolve,
    why_no_identity,
)
from asdm.results import Estimate
from asdm_prof.records import PartRecord, Profile, Validation

STRUCTURAL_PRIOR = "structural prior"
CONVOLUTION_WEIGHT = 2.0
EXPERTS = "cond_conv"
RECOVERED_BY_EXPERTS = 0.5
MODEL_ERROR = 0.01  # of the teacher (1 σ): the assumed error of a sum of unit times as a student's, until validated


class Infeasible(Exception):
    """No legal plan meets the budget; `lowest` is the ratio of the fastest one."""

    def __init__(self, lowest: float) -> None:
        super().__init__(f"the lowest reachable ratio is {lowest:.3f}")
        self.lowest = lowest


# ---------------------------------------------------------------------------------------------- budget


def parse_budget(text: str, teacher_latency_s: float) -> float:
    """`0.8`, `80%`, `250ms`, `1.2s` or `x1.3` as a ratio of the teacher's latency; raises ValueError otherwise."""
    word = text.strip().lower()
    try:
        if word.startswith("x"):
            ratio = 1 / float(word[1:])
        elif word.endswith("%"):
            ratio = float(word[:-1]) / 100
        elif word.endswith("ms"):
            ratio = float(word[:-2]) / 1e3 / teacher_latency_s
        elif word.endswith("s"):
            ratio = float(word[:-1]) / teacher_latency_s
        else:
            ratio = float(word)
    except (ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise ValueError(
            f"budget {text!r} is no budget below the teacher's {teacher_latency_s:.3g} s: "
            "give a fraction (0.8), a percentage (80%), a time (250ms, 1.2s) or a speed-up (x1.3)."
        )
    return ratio


# ---------------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class Choice:
    """One edit that a plan may hold: what it saves (share of the teacher) and what it costs."""

    edit: AnyEdit
    touches: frozenset[str]  # fqns of the units that it decides on
    saving: float
    damage: float


def choices(profile: Profile, validation: Validation | None = None) -> list[Choice]:
    """Every legal edit of a profile's UNet with its price, in a fixed order; savings as a validation corrects them."""
    factors = validation.factors if validation else {}
    return [replace(c, saving=c.saving * (1 - factors.get(c.edit.op, 0.0))) for c in _choices(profile)]


def _choices(profile: Profile) -> list[Choice]:
    shape = profile.topology
    found = [_remove_unit(profile, unit.fqn) for unit in shape.units if not why_no_identity(shape, unit)]
    found += [_replace_unit(profile, i) for i in range(len(profile.options))]
    for block in (*shape.down_blocks, *shape.up_blocks):
        for layer in shape.layers(block):
            fqns = [unit.fqn for unit in shape.layer_units(block, layer)]
            found.append(_removal(profile, RemoveLayer(block=block, layer=layer), fqns, fqns))
    return found + list(_block_choices(profile))


def _block_choices(profile: Profile) -> Iterator[Choice]:
    """The middle block, and the deepest pair where its neighbours' channels fit without it."""
    shape = profile.topology
    mid = ["mid_block"] if "mid_block" in shape.blocks else []
    if mid and is_legal_flow(shape, mid, ()):
        fqns = [unit.fqn for unit in shape.units if unit.block == "mid_block"]
        yield _removal(profile, RemoveBlock(block="mid_block"), fqns, fqns)
    deepest = shape.down_blocks[-1]
    if len(shape.down_blocks) > 1 and is_legal_flow(shape, [*mid, deepest, shape.mirror(deepest)], ()):
        gone = resolve(shape, [RemoveBlock(block=block) for block in (*mid, deepest)]).gone
        gone = tuple(fqn for fqn in gone if not fqn.startswith("mid_block"))
        units = [unit.fqn for unit in shape.units if unit.fqn in gone]
        yield _removal(profile, RemoveBlock(block=deepest), units, gone)


def _remove_unit(profile: Profile, fqn: str) -> Choice:
    return _removal(profile, RemoveUnit(unit=fqn), [fqn], [fqn])


def _removal(profile: Profile, edit: AnyEdit, touches: Sequence[str], gone: Sequence[str]) -> Choice:
    parts = [profile.part(fqn) for fqn in gone]
    return Choice(
        edit=edit,
        touches=frozenset(touches),
        saving=sum(part.share.median for part in parts),
        damage=sum(_worth(part) for part in parts) / profile.whole.params,
    )


def _replace_unit(profile: Profile, index: int) -> Choice:
    option = profile.options[index]
    unit = profile.part(option.unit)
    lost_use = 1 - (option.conv_macs + option.linear_macs) / (unit.conv_macs + unit.linear_macs)
    return Choice(
        edit=ReplaceUnit(unit=option.unit, with_=option.replacement),
        touches=frozenset([option.unit]),
        saving=unit.share.median - option.share.median,
        damage=max(lost_use, 0.0) * _worth(unit) / profile.whole.params,
    )


def _worth(part: PartRecord) -> float:
    return part.params * (CONVOLUTION_WEIGHT if part.kind == "resnet" else 1.0)


def _sigma(share: Estimate) -> float:
    """Standard error behind a 95 % interval."""
    return (share.high - share.low) / (2 * 1.96)


def margin(profile: Profile, confidence: float, validation: Validation | None = None) -> float:
    """How far below its budget a plan stays, as a ratio to the teacher: z·σ; of a measured σ, Student's t·σ."""
    if validation:
        return float(student_t.ppf(confidence, len(validation.plans))) * validation.sigma
    variance = MODEL_ERROR**2 + sum(_sigma(part.share) ** 2 for part in profile.units)
    for unit in {option.unit for option in profile.options}:
        variance += max(_sigma(option.share) ** 2 for option in profile.options if option.unit == unit)
    sigma = math.sqrt(variance)
    return float(norm.ppf(confidence)) * sigma


# ---------------------------------------------------------------------------------------------- prices


def price(profile: Profile, edits: Sequence[AnyEdit], validation: Validation | None = None) -> Prediction:
    """What a profile says of a student: the teacher's time less what is saved, and its 95 % interval.

    A validation gives its measured σ, and its correction where that was approved. Raises ValueError for an illegal
    edit and for a replacement that the profile did not time.
    """
    saved, variance = _saved(profile, edits)
    factors = validation.factors if validation else {}
    ratio = 1 - sum(share * (1 - factors.get(op, 0.0)) for op, share in saved.items())
    spread = 1.96 * math.sqrt(variance + MODEL_ERROR**2) if edits else 0.0
    if validation and edits:
        spread = margin(profile, 0.975, validation)
    return Prediction(
        latency_s=ratio * profile.whole.latency_s.median, ratio=ratio, low=ratio - spread, high=ratio + spread
    )


def saved_by_kind(profile: Profile, edits: Sequence[AnyEdit]) -> dict[str, float]:
    """What each kind of edit (`op`) in a plan saves by the profile, as a share of the teacher."""
    return _saved(profile, edits)[0]


def _saved(profile: Profile, edits: Sequence[AnyEdit]) -> tuple[dict[str, float], float]:
    """Savings by kind of edit, and the variance of their sum from the unit times alone."""
    kept = resolve(profile.topology, edits)
    saved: dict[str, float] = dict.fromkeys(sorted({edit.op for edit in edits}), 0.0)
    variance = 0.0
    for fqn in kept.gone:
        share = profile.part(fqn).share
        saved[_op_of(profile.topology, kept, fqn)] += share.median
        variance += _sigma(share) ** 2
    for fqn, name in kept.replaced.items():
        before, after = profile.part(fqn).share, _option_share(profile, fqn, name)
        saved["replace_unit"] += before.median - after.median
        variance += _sigma(before) ** 2 + _sigma(after) ** 2
    return saved, variance


def _op_of(shape: Topology, kept: Kept, fqn: str) -> str:
    """The kind of edit that made a part go."""
    if fqn in kept.removed_units:
        return "remove_unit"
    in_layers = (unit.fqn for layer in kept.removed_layers for unit in shape.layer_units(*layer))
    return "remove_layer" if fqn in in_layers else "remove_block"


def _option_share(profile: Profile, fqn: str, name: str) -> Estimate:
    for option in profile.options:
        if (option.unit, option.replacement) == (fqn, name):
            return option.share
    timed = sorted({option.replacement for option in profile.options if option.unit == fqn})
    raise ValueError(f"the profile has no time for {name} in {fqn}; it timed {', '.join(timed) or 'nothing'} there.")


# ---------------------------------------------------------------------------------------------- the plan


def make_plan(
    profile: Profile, budget: str, confidence: float = 0.95, validation: Validation | None = None
) -> PruningPlan:
    """The legal plan of least damage within `budget`, proved optimal.

    `confidence` is how sure the budget is to hold: the plan keeps z·σ away from it. Raises ValueError
    for a budget that is none and for a validation of something else, Infeasible with the lowest reachable ratio.
    """
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence {confidence} is none; choose from 0.5 up to, but not including, 1.")
    ratio = parse_budget(budget, profile.whole.latency_s.median)
    if not is_legal_flow(profile.topology, (), ()):
        raise ValueError(
            f"{profile.family} is a student with layers made identities; plan on a profile of its teacher."
        )
    if validation:
        _check_validation(profile, validation)
    found = choices(profile, validation)
    chosen, proof = _solve(profile, found, ratio, margin(profile, confidence, validation))
    edits = tuple(found[i].edit for i in chosen)
    resolve(profile.topology, edits)
    return PruningPlan(
        family=profile.family,
        teacher_config_sha256=profile.config_sha256,
        edits=edits,
        budget=budget.strip(),
        budget_ratio=ratio,
        confidence=confidence,
        damage_from=STRUCTURAL_PRIOR,
        predicted=price(profile, edits, validation),
        proof=proof,
        profile_sha256=profile.sha256(),
        validation_sha256=validation.sha256() if validation else None,
        measured_at=measured_at(profile),
    )


def measured_at(profile: Profile) -> MeasuredAt:
    """The settings of a profile, as a plan remembers them."""
    return MeasuredAt(**{name: getattr(profile, name) for name in MeasuredAt.model_fields})


def _check_validation(profile: Profile, validation: Validation) -> None:
    """Errors measured on one model or setting say nothing of another's."""
    if validation.teacher_config_sha256 != profile.config_sha256:
        raise ValueError(
            f"the validation is of {validation.family}, another model than the profile's {profile.family}."
        )
    for name in MeasuredAt.model_fields:
        measured, wanted = getattr(validation, name), getattr(profile, name)
        if measured != wanted:
            raise ValueError(
                f"the validation was measured with {name} {measured}, and the profile with {wanted}; "
                "validate the profile that you plan on."
            )


def draw(profile: Profile, ratio: float, rng: np.random.Generator) -> tuple[AnyEdit, ...]:
    """A random legal plan that is predicted at or just below `ratio`: the cheapest at random prices per second saved.

    Experts save nothing, so they are taken by the toss of a coin where a neighbour is pruned. `ratio` must be
    reachable: at least `fastest_ratio(profile)`.
    """
    found = choices(profile)
    saving = np.array([choice.saving for choice in found])
    prices = np.abs(saving) * rng.exponential(size=len(found))
    hosts = list(_hosts(found).values())
    prices[hosts] *= rng.choice([-1.0, 1.0], size=len(hosts))
    rows = _legal_rows(profile.topology, found)
    _experts_beside_pruned(rows, profile.topology, found)
    rows.add(dict(enumerate(saving)), 1 - ratio, np.inf)
    result = rows.minimise(prices)
    return tuple(choice.edit for i, choice in enumerate(found) if result.x[i] > 0.5)


def fastest_ratio(profile: Profile) -> float:
    """The ratio of the fastest legal plan."""
    found = choices(profile)
    return float(1 + _legal_rows(profile.topology, found).minimise([-choice.saving for choice in found]).fun)


def _solve(profile: Profile, found: Sequence[Choice], ratio: float, below: float) -> tuple[list[int], Proof]:
    """Least damage first; among plans of that damage the fastest."""
    n = len(found)
    rows = _legal_rows(profile.topology, found)
    _experts_beside_pruned(rows, profile.topology, found)
    recovered = _recovered_by_experts(rows, profile, found)
    saving = [choice.saving for choice in found]
    damage = np.zeros(rows.columns)
    damage[:n] = [choice.damage for choice in found]
    damage[list(recovered)] = [-worth for worth in recovered.values()]
    if ratio >= 1:
        return [], Proof(status="optimal", damage=0.0, bound=0.0, gap=0.0)
    needed = 1 - ratio + below
    fastest = rows.minimise([-s for s in saving])
    if -fastest.fun < needed:
        raise Infeasible(1 + fastest.fun + below)
    rows.add(dict(enumerate(saving)), needed, np.inf)
    best = rows.minimise(damage)
    rows.add(dict(enumerate(damage)), -np.inf, best.fun * (1 + 1e-9) + 1e-15)
    result = rows.minimise([-s for s in saving])
    chosen = [i for i in range(n) if result.x[i] > 0.5]
    total = float(sum(damage[i] for i in chosen)) - sum(w for i, w in recovered.items() if result.x[i] > 0.5)
    bound = float(best.mip_dual_bound)
    return chosen, Proof(status="optimal", damage=total, bound=bound, gap=max(0.0, float(best.mip_gap)))


class _Rows:
    """Constraints of one integer programme; columns after the first `n` are helpers."""

    def __init__(self, n: int) -> None:
        self.columns = n
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def helper(self) -> int:
        self.columns += 1
        return self.columns - 1

    def add(self, coefficients: dict[int, float], low: float, high: float) -> None:
        self.rows.append((coefficients, low, high))

    def minimise(self, cost: Sequence[float] | np.ndarray) -> OptimizeResult:
        objective = np.zeros(self.columns)
        objective[: len(cost)] = cost
        entries = [(i, j, v) for i, (row, _, _) in enumerate(self.rows) for j, v in row.items()]
        i, j, v = zip(*entries, strict=True)
        matrix = csr_array((v, (i, j)), shape=(len(self.rows), self.columns))
        limits = LinearConstraint(matrix, [row[1] for row in self.rows], [row[2] for row in self.rows])
        with _silent_stdout():
            result = milp(
                objective,
                integrality=np.ones(self.columns, dtype=int),
                bounds=Bounds(0, 1),
                constraints=limits,
                options={"mip_rel_gap": 0.0, "disp": False},
            )
        assert result.success, f"the solver stopped: {result.message}"
        return result


def _legal_rows(shape: Topology, found: Sequence[Choice]) -> _Rows:
    rows = _Rows(len(found))
    _one_decision_per_unit(rows, found)
    _legal_layers(rows, shape, found)
    _deepest_pair_with_mid(rows, found)
    return rows


def _one_decision_per_unit(rows: _Rows, found: Sequence[Choice]) -> None:
    for fqn in sorted({fqn for choice in found for fqn in choice.touches}):
        rows.add({i: 1.0 for i, choice in enumerate(found) if fqn in choice.touches}, 0, 1)


def _legal_layers(rows: _Rows, shape: Topology, found: Sequence[Choice]) -> None:
    """Each mirrored pair of blocks takes exactly one of its legal sets of removed layers, none being one."""
    column = {(c.edit.block, c.edit.layer): i for i, c in enumerate(found) if isinstance(c.edit, RemoveLayer)}
    for down in shape.down_blocks:
        sets = _legal_sets(shape, down)
        helpers = [rows.helper() for _ in sets]
        rows.add(dict.fromkeys(helpers, 1.0), 1, 1)
        for layer in ((b, n) for b in (down, shape.mirror(down)) for n in shape.layers(b)):
            using = {h: -1.0 for h, removed in zip(helpers, sets, strict=True) if layer in removed}
            rows.add({column[layer]: 1.0} | using, 0, 0)


def _legal_sets(shape: Topology, down: str) -> list[tuple[tuple[str, int], ...]]:
    up = shape.mirror(down)
    here, there = ([(block, layer) for layer in shape.layers(block)] for block in (down, up))
    pairs = itertools.chain.from_iterable(
        itertools.product(itertools.combinations(here, k), itertools.combinations(there, k))
        for k in range(min(len(here), len(there)) + 1)
    )
    return [(*a, *b) for a, b in pairs if is_legal_flow(shape, (), (*a, *b))]


def _deepest_pair_with_mid(rows: _Rows, found: Sequence[Choice]) -> None:
    blocks = {c.edit.block: i for i, c in enumerate(found) if isinstance(c.edit, RemoveBlock)}
    mid = blocks.pop("mid_block", None)
    for deepest in blocks.values():
        if mid is not None:
            rows.add({deepest: 1.0, mid: -1.0}, -1, 0)


def _hosts(found: Sequence[Choice]) -> dict[str, int]:
    """Units that may take experts → the column of that choice."""
    return {c.edit.unit: i for i, c in enumerate(found) if isinstance(c.edit, ReplaceUnit) and c.edit.with_ == EXPERTS}


def _beside(shape: Topology, fqn: str) -> list[UnitShape]:
    """The other ResNets of a ResNet's block."""
    block = shape.unit(fqn).block
    return [unit for unit in shape.units if unit.kind == "resnet" and unit.block == block and unit.fqn != fqn]


def _experts_beside_pruned(rows: _Rows, shape: Topology, found: Sequence[Choice]) -> None:
    """Experts are of use only where a neighbour was pruned."""
    for host, column in _hosts(found).items():
        pruned = itertools.chain.from_iterable(_removers(found, unit.fqn) for unit in _beside(shape, host))
        rows.add({column: 1.0} | dict.fromkeys(pruned, -1.0), -np.inf, 0)


def _recovered_by_experts(rows: _Rows, profile: Profile, found: Sequence[Choice]) -> dict[int, float]:
    """A column for each pruned kernel that a neighbour takes as its expert → the damage that this undoes."""
    hosts, worth = _hosts(found), {}
    for unit in profile.topology.units:
        if unit.kind != "resnet" or not (removers := _removers(found, unit.fqn)):
            continue
        neighbours = [other for other in _beside(profile.topology, unit.fqn) if other.fqn in hosts]
        for place, kernel in enumerate(_kernels(unit)):
            takers = [hosts[other.fqn] for other in neighbours if _kernels(other)[place] == kernel]
            if takers:
                helper = rows.helper()
                for needed in (removers, takers):
                    rows.add({helper: 1.0} | dict.fromkeys(needed, -1.0), -np.inf, 0)
                lost = CONVOLUTION_WEIGHT * 9 * math.prod(kernel) / profile.whole.params
                worth[helper] = RECOVERED_BY_EXPERTS * lost
    return worth


def _removers(found: Sequence[Choice], fqn: str) -> list[int]:
    """The columns of the choices that prune a unit and leave its block."""
    return [i for i, c in enumerate(found) if fqn in c.touches and isinstance(c.edit, RemoveLayer | RemoveUnit)]


def _kernels(unit: UnitShape) -> tuple[tuple[int, int], tuple[int, int]]:
    """Channels in and out of a ResNet's two 3×3 convolutions."""
    return (unit.channels_in, unit.channels_out), (unit.channels_out, unit.channels_out)


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
