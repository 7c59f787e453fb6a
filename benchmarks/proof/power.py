"""How many pictures and seeds a proof needs, by what the rows of a pilot vary by.

A row's difference from the teacher varies with the pictures, whose part of the variance falls with their number, and
with the training seeds, whose part falls with theirs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asdm.records.bench import Measure
from benchmarks.equivalence import EQUIVALENT
from benchmarks.proof import evidence
from benchmarks.proof.records import Proof, ProofRow

PICTURES, SEEDS = (100, 200, 350, 500, 1000, 2000), (1, 2, 3, 5)


@dataclass(frozen=True)
class Variation:
    """A metric's standard errors in a row's difference from the teacher, and what they were measured on."""

    measure: Measure
    of_pictures: float  # of the mean over `pictures`
    of_seeds: float  # standard deviation between trainings
    pictures: int

    def half_width(self, pictures: int, seeds: int) -> float:
        """Of the 95 % interval with so many pictures and seeds."""
        variance = self.of_pictures**2 * self.pictures / pictures + self.of_seeds**2 / seeds
        return evidence.SURE * math.sqrt(variance)


@dataclass(frozen=True)
class Design:
    """So many pictures and seeds: the widest interval, as a share of what equivalence allows, and its hours."""

    pictures: int
    seeds: int
    widest: float
    measure: Measure  # whose interval that is
    hours: float


def variations(proof: Proof, row: ProofRow) -> Iterator[Variation]:
    """Of every metric that a row's quality is told by; it needs two seeds."""
    teacher = proof.rows[0].results[0].metrics
    for measure in evidence.counted_measures(proof):
        judged = [result.metrics[measure.name] for result in row.results]
        own = teacher[measure.name]
        difference = np.mean([one.samples for one in judged], axis=0) - np.array(own.samples)
        error = difference.std(ddof=1) / (math.sqrt(len(difference)) if own.of == "pictures" else 1.0)
        values = [one.value for one in judged]
        seeds = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        yield Variation(measure, float(error), seeds, proof.pictures)


def designs(proof: Proof) -> list[Design]:
    """Every number of pictures and seeds, by what our decisive rows varied by, the cheapest first.

    The hours are those of all decisive rows.
    """
    rows = [row for row in evidence.trained(proof) if not row.ablates and len(row.results) > 1]
    ours = [row for row in evidence.our_rows(proof) if len(row.results) > 1]
    decisive = [one for row in ours for one in variations(proof, row) if one.measure.name in EQUIVALENT]
    if not decisive:
        return []
    results = [result for row in rows for result in row.results]
    training, drawing = (float(np.mean(each)) for each in zip(
        *((result.seconds, result.drawing_seconds / proof.pictures) for result in results), strict=True))  # fmt: skip
    candidates = []
    for pictures, seeds in itertools.product(PICTURES, SEEDS):
        shares = [one.half_width(pictures, seeds) / evidence.margin(proof, one.measure) for one in decisive]
        widest = int(np.argmax(shares))
        hours = len(rows) * seeds * (training + pictures * drawing) / 3600
        candidates.append(Design(pictures, seeds, shares[widest], decisive[widest].measure, hours))
    return sorted(candidates, key=lambda one: one.hours)


def sentence(candidates: Sequence[Design]) -> str:
    """The cheapest design whose every interval fits into what equivalence allows, or how near the largest comes."""
    enough = [one for one in candidates if one.widest <= 1]
    if not enough:
        best = min(candidates, key=lambda one: one.widest)
        return (
            f"No number of pictures up to {PICTURES[-1]} and seeds up to {SEEDS[-1]} could show equivalence: with "
            f"{best.pictures} and {best.seeds}, the interval of {best.measure.title} is {best.widest:.1f} times too "
            "wide."
        )
    one = enough[0]
    return (
        f"{one.pictures} pictures and {one.seeds} seed{'s' if one.seeds > 1 else ''} can show equivalence: the widest "
        f"interval, of {one.measure.title}, takes {one.widest:.0%} of what is allowed "
        f"({one.hours:.1f} hours for these rows)."
    )
