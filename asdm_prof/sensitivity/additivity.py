"""Whether damages add up: joint plans' predicted damage against the measured, and how well cheap scores predict it.

To first order a student's output error is the sum of its edits' errors, e = Σ eᵢ, so its mean square is Σ ‖eᵢ‖² + 2 Σ
⟨eᵢ, eⱼ⟩. Damages add up where errors are orthogonal; the products, which follow from single edits' outputs at no
further cost, are the pairwise terms. They are used for neighbours: edits of one block or of mirrored blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from asdm.measure.statistics import BOOTSTRAP_DRAWS
from asdm.plan.legality import ResolvedPlan
from asdm.plan.topology import Topology
from asdm_prof.planner.choices import edits_key
from asdm_prof.records import Additivity, Agreement, DamagePair, EditDamage, Fit, Interval, JointDamage

ENOUGH = 0.9  # Spearman correlation from which the sum suffices
MOST_PAIRS = 100  # that a plan is predicted by: each is a variable of the planner's programme


def interval_of(statistic: Sequence[float] | np.ndarray, value: float) -> Interval:
    """A value with the 95 % interval of its finite bootstrap draws."""
    draws = np.asarray(statistic)
    low, high = np.quantile(draws[np.isfinite(draws)], [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))


def fit(predicted: Sequence[float], measured: Sequence[float]) -> Fit:
    """Rank correlation and R² of predictions, with intervals over the pairs; raises ValueError for fewer than three."""
    x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    if len(x) < 3:
        raise ValueError(f"a correlation needs at least 3 plans, got {len(x)}.")
    picks = np.random.default_rng(0).integers(0, len(x), size=(BOOTSTRAP_DRAWS, len(x)))
    draws = (x[picks], y[picks])
    own = (x[None], y[None])

    def both(statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Interval:
        return interval_of(statistic(*draws), float(statistic(*own)[0]))

    return Fit(spearman=both(_spearman), r2=both(_r2), r2_line=both(lambda a, b: _correlation(a, b) ** 2))


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row by row; NaN where a row is constant."""
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _correlation(rankdata(x, axis=1), rankdata(y, axis=1))


def _r2(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - ((y - x) ** 2).sum(axis=1) / ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)


# ---------------------------------------------------------------------------------------------- pairs


def neighbour_pairs(edits: Sequence[ResolvedPlan], overlap: np.ndarray) -> list[DamagePair]:
    """Twice the products of two edits' output errors, for compatible edits in one block or in mirrored ones.

    `overlap` (edits, edits): mean product per element. Of many pairs the `MOST_PAIRS` with the largest products stay.
    """
    touched = [one.touched_units for one in edits]
    groups = [{_group(one.topology, fqn) for fqn in one.touched_units} for one in edits]
    near = [
        (i, j)
        for i, j in itertools.combinations(range(len(edits)), 2)
        if not touched[i] & touched[j] and groups[i] & groups[j]
    ]
    strongest = sorted(near, key=lambda pair: -abs(overlap[pair]))[:MOST_PAIRS]
    return [DamagePair(first=i, second=j, damage=2 * float(overlap[i, j])) for i, j in sorted(strongest)]


def _group(shape: Topology, fqn: str) -> str:
    """The down block of a unit or of its mirror; the middle block counts with the deepest pair."""
    block = shape.unit(fqn).block
    if block == "mid_block":
        return shape.down_blocks[-1]
    return block if block in shape.down_blocks else shape.mirror(block)


# ---------------------------------------------------------------------------------------------- judging


def predict(edits: Sequence[EditDamage], pairs: Sequence[DamagePair], parts: Sequence[int]) -> tuple[float, float]:
    """Damage of several single edits together: their sum, and their sum with pair terms."""
    chosen, summed = set(parts), sum(edits[i].damage.value for i in parts)
    return summed, summed + sum(p.damage for p in pairs if p.first in chosen and p.second in chosen)


def judge(
    edits: Sequence[EditDamage], pairs: Sequence[DamagePair], plans: Sequence[tuple[Sequence[int], Interval]]
) -> Additivity:
    """Both predictions against the measured damage of plans, each plan given as indices into the single edits."""
    joint = []
    for parts, damage in plans:
        summed, with_pairs = predict(edits, pairs, parts)
        together = tuple(edit for i in parts for edit in edits[i].edits)
        joint.append(JointDamage(edits=together, summed=summed, with_pairs=with_pairs, damage=damage))
    measured = [plan.damage.value for plan in joint]
    plain, paired = (fit([getattr(p, name) for p in joint], measured) for name in ("summed", "with_pairs"))
    use_sum = plain.spearman.value >= ENOUGH or plain.spearman.value >= paired.spearman.value
    used = plain if use_sum else paired
    return Additivity(
        spearman=used.spearman.value,
        r2=used.r2.value,
        used="sum" if use_sum else "pairs",
        summed=plain,
        with_pairs=paired,
        plans=tuple(joint),
    )


def agreement(edits: Sequence[EditDamage], scores: dict[str, dict[frozenset[str], float]]) -> list[Agreement]:
    """Rank correlation of each score (by its edits' key) with measured damage, for scores of three or more edits."""
    agreements = []
    for name, values in scores.items():
        both = [(values[k], one.damage.value) for one in edits if (k := edits_key(one.edits)) in values]
        if len(both) >= 3:
            agreements.append(Agreement(score=name, spearman=fit(*zip(*both, strict=True)).spearman, edits=len(both)))
    return agreements
