"""A row's metrics over pictures and training seeds, and the rows that there are results of.

An interval is made of what the pictures leave open (their variance, or that of random halves for distances of sets) and
of what the training seeds do (Student's t of their spread), drawn together. Pictures are paired: all rows draw the same
captions from the same noise. With one training seed the second part is missing, and every table says so.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from asdm.measure.statistics import bootstrap
from asdm.records.bench import MEASURES, Measure
from benchmarks.equivalence import Judged, Spread, spread_of, standard_error_factor
from benchmarks.proof.records import Proof, ProofRow

# The perceptual distance is left out: its VGG has trained the paper's rows, so it cannot judge them.
JUDGES = tuple(measure for measure in MEASURES.values() if measure.name != "perceptual_to_teacher")
NOT_COUNTED = ("kernel_distance",)  # in the verdict: it says what the Fréchet distance does
SURE = 1.96  # normal quantile of a 95 % interval


def judged_measures(proof: Proof) -> list[Measure]:
    """Those that this proof has: R@1 needs 200 captions."""
    return [measure for measure in JUDGES if measure.name in proof.rows[0].results[0].metrics]


def counted_measures(proof: Proof) -> list[Measure]:
    """Those that tables and verdicts have."""
    return [measure for measure in judged_measures(proof) if measure.name not in NOT_COUNTED]


def trained(proof: Proof) -> list[ProofRow]:
    """The students that there are results of."""
    return [row for row in proof.rows[1:] if row.results]


def beside_teacher(proof: Proof) -> list[ProofRow]:
    """The students that were judged by as many pictures as the teacher; ablations are compared among themselves."""
    return [row for row in trained(proof) if row.results[0].drawn == proof.pictures]


def spread(row: ProofRow, measure: str, seeds: bool = True) -> Spread | None:
    """A row's metric over its seeds; None where it was not judged. Without `seeds`, draws are of pictures alone."""
    each = [spread_of(result.metrics[measure]) for result in row.results if measure in result.metrics]
    return over_seeds(each, f"{row.name} {measure}", seeds) if each else None


def over_seeds(each: Sequence[Spread], what: str, seeds: bool = True) -> Spread:
    """The mean over training seeds of what `what` names; its draws have the seeds' part too, by Student's t."""
    values = np.array([one.value for one in each])
    draws = np.mean([one.draws for one in each], axis=0)
    if seeds and len(values) > 1:
        draws = draws + students_t(what, len(values) - 1, len(draws)) * values.std(ddof=1) / math.sqrt(len(values))
    return Spread(float(values.mean()), draws)


def students_t(what: str, freedom: int, count: int) -> np.ndarray:
    """Draws of Student's t that are of `what` alone."""
    return np.random.default_rng(zlib.crc32(what.encode())).standard_t(freedom, count)


def loss(proof: Proof, row: ProofRow, measure: Measure) -> Spread | None:
    """How much worse than the teacher's a row's pictures are; below 0 they are better."""
    ours, teacher = spread(row, measure.name), spread(proof.rows[0], measure.name)
    if ours is None or teacher is None:
        return None
    return teacher - ours if measure.more_is_better else ours - teacher


def alike(row: ProofRow, other: ProofRow) -> tuple[ProofRow, ProofRow] | None:
    """Two rows with the training seeds that both have, in their order; None where they share none.

    Raises ValueError where they drew different numbers of pictures, which cannot be paired.
    """
    seeds = {one.seed for one in row.results} & {one.seed for one in other.results}
    if not seeds:
        return None
    both = (tuple(one for one in each.results if one.seed in seeds) for each in (row, other))
    first, second = (each.model_copy(update={"results": kept}) for each, kept in zip((row, other), both, strict=True))
    if len(drawn := {one.drawn for one in (*first.results, *second.results)}) > 1:
        raise ValueError(
            f"{row.name} and {other.name} were judged by {' and '.join(map(str, sorted(drawn)))} pictures."
        )
    return first, second


def noise_floor(proof: Proof, measure: str) -> float:
    """How far the teacher is from itself with other noise: less than this in 95 % of repetitions.

    For a metric of agreement, how far its other images are from its own.
    """
    again, own = proof.noise[measure], proof.rows[0].results[0].metrics[measure]
    return again.value if measure.endswith("_to_teacher") else SURE * standard_error([again], [own])


def standard_error(these: Sequence[Judged], those: Sequence[Judged]) -> float:
    """Of the difference of two groups' means, by the pictures alone, which are the same in all."""
    difference = np.mean([one.samples for one in these], 0) - np.mean([one.samples for one in those], 0)
    return float(np.sqrt(np.square(difference - difference.mean()).sum()) * standard_error_factor(these[0]))


def latency(row: ProofRow) -> Spread | None:
    """A row's latency as a ratio to the teacher's: the median over its pairs."""
    if row.latency is None:
        return None
    pairs = np.array(row.latency.student_s) / np.array(row.latency.teacher_s)
    return Spread(row.latency.ratio.median, np.asarray(bootstrap(pairs)))
