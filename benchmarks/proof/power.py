"""How many pictures and seeds could show that a row is its teacher's equal, by what the rows of a pilot vary by.

An interval of pictures alone has to fit into the margin. Its width falls with the number of pictures; where it lies
varies with the pictures and with the seeds. The margin is a share of the teacher's own value, which falls as well for a
distance of sets, because fewer pictures make it larger.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from asdm.records.bench import Measure
from benchmarks import equivalence
from benchmarks.equivalence import EQUIVALENT, Judged
from benchmarks.proof import evidence
from benchmarks.proof.evidence.spreads import SURE, standard_error
from benchmarks.proof.records import Proof, ProofRow

PICTURES, SEEDS = (100, 200, 350, 500, 1000, 2000), (1, 2, 3, 5)
ENOUGH = 0.8


@dataclass(frozen=True)
class Variation:
    """A metric's standard errors in a row's difference from the teacher, and what they were measured on."""

    measure: Measure
    of_pictures: float  # of the mean over `pictures`
    of_seeds: float  # standard deviation between trainings
    pictures: int
    teacher: Judged

    def margin(self, pictures: int) -> float:
        """What equivalence allows with so many pictures."""
        value = self.teacher.value
        if self.teacher.of == "halves":
            by_few = float(np.mean(self.teacher.samples)) - value  # by which half of the pictures make it larger
            value += by_few * (self.pictures / pictures - 1)
        return equivalence.margin(self.measure.name, value)

    def power(self, pictures: int, seeds: int, two_sided: bool = True) -> float:
        """Chance to show equality, or with one side that the row is not worse, where it does not differ."""
        of_pictures = self.of_pictures * math.sqrt(self.pictures / pictures)
        room = self.margin(pictures) - SURE * of_pictures
        beyond = norm.sf(room / math.hypot(of_pictures, self.of_seeds / math.sqrt(seeds)))
        return float(max(0.0, 1 - (2 if two_sided else 1) * beyond))


@dataclass(frozen=True)
class Design:
    """So many pictures and seeds: the least power of all rows and metrics, whose that is, and the rows' hours."""

    pictures: int
    seeds: int
    power: float
    measure: Measure
    hours: float


def variations(proof: Proof, row: ProofRow) -> Iterator[Variation]:
    """Of every metric that a row's quality is told by; it needs two seeds."""
    teacher = proof.rows[0].results[0].metrics
    for measure in evidence.counted_measures(proof):
        judged = [result.metrics[measure.name] for result in row.results]
        own = teacher[measure.name]
        values = [one.value for one in judged]
        seeds = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        yield Variation(measure, standard_error(judged, [own]), seeds, proof.pictures, own)


def designs(proof: Proof, two_sided: bool = True) -> list[Design]:
    """Every number of pictures and seeds, by what our decisive rows varied by, the cheapest first.

    The hours are those of all decisive rows.
    """
    rows = [row for row in evidence.beside_teacher(proof) if len(row.results) > 1]
    ours = [row for row in evidence.our_rows(proof) if len(row.results) > 1]
    decisive = [one for row in ours for one in variations(proof, row) if one.measure.name in EQUIVALENT]
    if not decisive:
        return []
    results = [result for row in rows for result in row.results]
    training, drawing = (float(np.mean(each)) for each in zip(
        *((result.seconds, result.drawing_seconds / proof.pictures) for result in results), strict=True))  # fmt: skip
    candidates = []
    for pictures, seeds in itertools.product(PICTURES, SEEDS):
        powers = [one.power(pictures, seeds, two_sided) for one in decisive]
        least = int(np.argmin(powers))
        hours = len(rows) * seeds * (training + pictures * drawing) / 3600
        candidates.append(Design(pictures, seeds, powers[least], decisive[least].measure, hours))
    return sorted(candidates, key=lambda one: one.hours)


def sentence(proof: Proof) -> str | None:
    """The cheapest designs that show with 4 of 5 chances that rows without a difference are equal, or are not worse.

    None for a proof whose rows of ours have one seed.
    """
    both = [(claim, designs(proof, two_sided)) for claim, two_sided in (("equal", True), ("not worse", False))]
    if not all(candidates for _, candidates in both):
        return None
    return " ".join(_sentence(claim, candidates) for claim, candidates in both)


def _sentence(claim: str, candidates: Sequence[Design]) -> str:
    enough = [one for one in candidates if one.power >= ENOUGH]
    if not enough:
        best = max(candidates, key=lambda one: (one.power, one.pictures, one.seeds))
        return (
            f"No number of pictures up to {PICTURES[-1]:,} and seeds up to {SEEDS[-1]} would show with {ENOUGH:.0%} "
            f"chance that rows without a difference are {claim}: with {best.pictures:,} and {best.seeds} it is "
            f"{best.power:.0%}, for want of {best.measure.title}."
        )
    one = enough[0]
    seeds = f"{one.seeds} seed{'s' if one.seeds > 1 else ''}"
    return (
        f"{one.pictures:,} pictures and {seeds} show with {one.power:.0%} chance "
        f"that rows without a difference are {claim} ({one.hours:.1f} hours for these rows)."
    )
