"""What each part of the paper buys: every ablation beside the row that has the part.

Differences are paired by picture and by training seed, since all rows of a seed learn from the same batches. Three
seeds of one pair say little about what seeds do, so their variance is pooled over all ablations of a row: what is left
of each training's value besides its row's mean and its seed's, less what the pictures explain, which their own part
has already. Labels hold for all comparisons together (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asdm.records.bench import MEASURES, Measure
from asdm.records.measurement import Estimate
from benchmarks.equivalence import Spread, spread_of, standard_error_factor
from benchmarks.proof.evidence.spreads import SURE, alike, counted_measures, latency, over_seeds, students_t, trained
from benchmarks.proof.evidence.words import figure, signed, titles
from benchmarks.proof.records import Proof, ProofRow

POWER = 0.84  # normal quantile of seeing an effect in 4 of 5 repetitions
LEVEL = 0.05


@dataclass(frozen=True)
class Bought:
    """How much worse an ablation is in one metric (above 0: the part helps)."""

    estimate: Estimate
    chance: float  # of a difference as large, on either side, if the part did nothing
    seeds: int  # that both rows have

    @property
    def smallest(self) -> float:
        """Effect that would be beyond such an interval in 4 of 5 repetitions."""
        return (self.estimate.high - self.estimate.low) / 2 * (SURE + POWER) / SURE


@dataclass(frozen=True)
class Component:
    """What a row has that its ablation lacks: quality that it buys, and what it costs."""

    row: ProofRow  # the ablation
    base: ProofRow
    bought: Mapping[str, Bought]
    sure: frozenset[str]  # metrics in which it did something, all comparisons considered
    latency: Spread | None  # ratio more

    @property
    def effect(self) -> str:
        """Whether what the ablation lacks helped or hurt, and in which metrics."""
        if min(one.seeds for one in self.bought.values()) < 2:
            return "one seed"
        above = {name: one.estimate.median > 0 for name, one in self.bought.items() if name in self.sure}
        helped, hurt = (
            [MEASURES[name] for name, helps in above.items() if helps is wanted] for wanted in (True, False)
        )
        parts = [f"{what} ({titles(those)})" for what, those in (("helped", helped), ("hurt", hurt)) if those]
        return ", ".join(parts) or "not told apart"


def components(proof: Proof) -> list[Component]:
    """Every ablation, where both it and what it ablates have results of the same seeds."""
    rows = [(row, proof.row(row.ablates)) for row in trained(proof) if row.ablates]
    found = {row.name: (row, base, both) for row, base in rows if base and (both := alike(row, base))}
    measures = counted_measures(proof)
    bought = {
        (name, measure.name): _bought(measure, *both, _seed_noise(base, [one for one, its, _ in found.values()
                                                                         if its is base], measure))
        for name, (_, base, both) in found.items()
        for measure in measures
    }  # fmt: skip
    sure = holm({key: one.chance for key, one in bought.items() if one.seeds > 1})
    return [
        Component(
            row, base, {measure.name: bought[name, measure.name] for measure in measures},
            frozenset(measure for row_, measure in sure if row_ == name), _latency_more(row, base),
        )
        for name, (row, base, _) in found.items()
    ]  # fmt: skip


def _latency_more(row: ProofRow, base: ProofRow) -> Spread | None:
    with_it, without = latency(base), latency(row)
    if not (with_it and without and base.latency and row.latency):
        return None
    return None if base.latency.plan_sha256 == row.latency.plan_sha256 else with_it - without


def _bought(measure: Measure, row: ProofRow, base: ProofRow, noise: tuple[float, int] | None) -> Bought:
    """How much worse a row is than another of the same seeds."""
    pairs = [(spread_of(one.metrics[measure.name]), spread_of(other.metrics[measure.name]))
             for one, other in zip(row.results, base.results, strict=True)]  # fmt: skip
    each = [with_it - without if measure.more_is_better else without - with_it for without, with_it in pairs]
    what, seeds = f"{row.name} {base.name} {measure.name}", len(each)
    if noise is None:
        spread = over_seeds(each, what)
    else:
        spread, (variance, freedom) = over_seeds(each, what, seeds=False), noise
        left = max(0.0, 2 * variance - _of_pictures(measure, row, base)) / seeds
        spread = Spread(spread.value, spread.draws + students_t(what, freedom, len(spread.draws)) * math.sqrt(left))
    beyond = min(np.mean(spread.draws <= 0), np.mean(spread.draws >= 0))
    return Bought(spread.estimate(), float(min(1.0, 2 * max(beyond, 1 / len(spread.draws)))), seeds)


def _seed_noise(base: ProofRow, ablations: Sequence[ProofRow], measure: Measure) -> tuple[float, int] | None:
    """Variance of one training's value besides its row's mean and its seed's, and its degrees of freedom.

    By least squares over what there is: a row may lack a seed. None where there are not three rows with two seeds.
    """
    rows = [row for row in (base, *ablations) if len(row.results) > 1]
    seeds = sorted({one.seed or 0 for row in rows for one in row.results})
    trained_ = [(place, seeds.index(one.seed or 0), one.metrics[measure.name].value)
                for place, row in enumerate(rows) for one in row.results]  # fmt: skip
    freedom = len(trained_) - len(rows) - len(seeds) + 1
    if len(rows) < 3 or freedom < 1:
        return None
    of_row, of_seed, values = (np.array(column) for column in zip(*trained_, strict=True))
    means = np.concatenate([of_row[:, None] == range(len(rows)), of_seed[:, None] == range(1, len(seeds))], axis=1)
    rest = values - means @ np.linalg.lstsq(means.astype(float), values, rcond=None)[0]
    return float(np.square(rest).sum() / freedom), freedom


def _of_pictures(measure: Measure, row: ProofRow, base: ProofRow) -> float:
    """Variance of one seed's difference that other pictures would make, besides what they do to all seeds alike.

    0 where there is one seed, which does not tell them apart.
    """
    pairs = list(zip(row.results, base.results, strict=True))
    if len(pairs) < 2:
        return 0.0
    each = np.array([np.subtract(a.metrics[measure.name].samples, b.metrics[measure.name].samples) for a, b in pairs])
    rest = each - each.mean(1, keepdims=True) - each.mean(0) + each.mean()
    per_seed = np.square(rest).sum() / (len(pairs) - 1)
    return float(per_seed * standard_error_factor(row.results[0].metrics[measure.name]) ** 2)


def holm(chances: Mapping[tuple[str, str], float]) -> set[tuple[str, str]]:
    """The comparisons that did something, with a chance of LEVEL that any of them did not (Holm)."""
    sure = set[tuple[str, str]]()
    for left, key in zip(range(len(chances), 0, -1), sorted(chances, key=chances.__getitem__), strict=True):
        if chances[key] * left >= LEVEL:
            break
        sure.add(key)
    return sure


# ---------------------------------------------------------------------------------------------- in words


def parts_table(proof: Proof) -> list[dict[str, str]]:
    """What each of the paper's parts, or its way of making it, buys over what an ablation has instead."""
    measures = counted_measures(proof)
    return [
        {
            "row": one.row.name,
            "changed": one.row.what,
            **{measure.title: _cell(one.bought[measure.name]) for measure in measures},
            "UNet ×": "" if one.latency is None else f"{one.latency.value:+.3f}",
            "the part": one.effect,
        }
        for one in components(proof)
    ]


def _cell(bought: Bought) -> str:
    return f"{signed(bought.estimate)} ±{bought.smallest:.2g}"


def parts_sentence(proof: Proof) -> str:
    """What was compared, and how to read the table of parts."""
    found = components(proof)
    bases = list({one.base.name: one.base for one in found}.values())
    first, seeds = bases[0].results[0], {bought.seeds for one in found for bought in one.bought.values()}
    several = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(max(seeds))
    counted = f"{several} training seed{'s' if max(seeds) > 1 else ''}"
    own = "; ".join(f"{base.name} has {', '.join(_values(base, proof))}" for base in bases)
    return (
        f"What each part buys: how much worse the row without it is than {' or '.join(base.name for base in bases)} "
        "(above 0: the part helps), with the 95 % interval, and behind ± the smallest effect that 4 of 5 repetitions "
        f"would show; UNet × is the latency that it costs. {counted} of {first.pictures:,} pictures each, "
        f"{first.drawn} captions, paired by picture and seed; {own}. The last column holds for all "
        f"{sum(len(one.bought) for one in found)} comparisons together (Holm, 5 %)."
    )


def gates_sentence(proof: Proof) -> str:
    """How far the gates of CLME opened in training; empty where no row has any."""
    told = []
    for row in (one for one in proof.rows if one.ablates is None):
        kernels = [kernel for result in row.results for kernel in result.gates.values()]
        if kernels:
            own, others = [kernel[0] for kernel in kernels], [gate for kernel in kernels for gate in kernel[1:]]
            told.append(f"{row.name} {_range(own)} and {_range(others)}")
    if not told:
        return ""
    return (
        "How far CLME’s gates are open in the end, of 0 to 1 (mean of |2·σ(z) − 1| over the last step’s images; each "
        f"convolution’s own kernel, and its other experts): {'; '.join(told)}."
    )


def _range(values: Sequence[float]) -> str:
    return f"{figure(min(values))} to {figure(max(values))}"


def _values(row: ProofRow, proof: Proof) -> list[str]:
    means = {
        one: np.mean([result.metrics[one.name].value for result in row.results]) for one in counted_measures(proof)
    }
    return [f"{measure.title} {figure(float(mean))}" for measure, mean in means.items()]
