"""Whether a row can be told from its teacher, and from the teacher trained as the row was."""

from __future__ import annotations

from dataclasses import dataclass

from asdm.records.bench import Measure
from asdm.records.measurement import Estimate
from benchmarks import equivalence
from benchmarks.equivalence import EQUIVALENT, spread_of
from benchmarks.proof.evidence.spreads import alike, counted_measures, over_seeds, spread, trained
from benchmarks.proof.evidence.words import at, bounds, signed, titles
from benchmarks.proof.records import Proof, ProofRow
from benchmarks.proof.rows import CONTROL

EQUAL, BETTER, NOT_WORSE, NOT_SHOWN = "equal", "better", "not worse", "not shown"


@dataclass(frozen=True)
class Equivalence:
    """Whether these students can be told from another row in one metric, by the pictures and the mean of the seeds."""

    measure: Measure
    difference: Estimate  # the row's less the other's; the interval is of pictures alone
    of_trainings: Estimate  # the same, with what the training seeds leave open
    seeds: tuple[float, float]  # the least and the greatest difference of a seed
    margin: float

    @property
    def shown(self) -> bool:
        return equivalence.within(self.difference, self.margin)

    @property
    def worst(self) -> float:
        """By how much the row may be worse, as a share of what is allowed; below 0, it is better."""
        worst = -self.difference.low if self.measure.more_is_better else self.difference.high
        return worst / self.margin

    @property
    def verdict(self) -> str:
        """The row beside the other: equal, better, not worse beyond what is allowed, or none of these shown."""
        if self.shown:
            return EQUAL
        return BETTER if self.worst < 0 else NOT_WORSE if self.worst < 1 else NOT_SHOWN


def margin(proof: Proof, measure: Measure) -> float:
    """The difference from the teacher that equivalence allows."""
    teacher = spread(proof.rows[0], measure.name)
    assert teacher is not None, "the teacher is judged first"
    return equivalence.margin(measure.name, teacher.value)


def equivalences(proof: Proof, row: ProofRow, other: ProofRow | None = None) -> list[Equivalence]:
    """A row beside its teacher, or beside another row seed by seed, in every metric that equivalence is told by."""
    if other:
        both = alike(row, other)
        if not both:
            return []
        row, other = both
    compared = []
    for measure in counted_measures(proof):
        if measure.name in EQUIVALENT:
            others = other.results if other else proof.rows[0].results * len(row.results)
            each = [
                spread_of(one.metrics[measure.name]) - spread_of(its.metrics[measure.name])
                for one, its in zip(row.results, others, strict=True)
            ]
            values = [one.value for one in each]
            what = f"{row.name} {other.name if other else ''} {measure.name}"
            pictures, trainings = (over_seeds(each, what, seeds).estimate() for seeds in (False, True))
            extremes = (min(values), max(values))
            compared.append(Equivalence(measure, pictures, trainings, extremes, margin(proof, measure)))
    return compared


def our_rows(proof: Proof) -> list[ProofRow]:
    """The trained rows that are to be their teacher's equal."""
    return [row for row in trained(proof) if row.name.startswith("ours")]


def control(proof: Proof) -> ProofRow | None:
    """The teacher itself, trained as ours are, where it has results."""
    row = proof.row(CONTROL.name)
    return row if row and row.results else None


def equivalence_sentences(proof: Proof) -> list[str]:
    """One of each of our rows."""
    return [equivalence_sentence(row, equivalences(proof, row)) for row in our_rows(proof)]


def equivalence_sentence(row: ProofRow, compared: list[Equivalence]) -> str:
    """In which metrics a row's students cannot be told from the teacher, are better, or may be worse."""
    told = {verdict: [one.measure for one in compared if one.verdict == verdict]
            for verdict in (EQUAL, BETTER, NOT_WORSE, NOT_SHOWN)}  # fmt: skip
    said = {EQUAL: "equal to the teacher in", BETTER: "better than it in", NOT_WORSE: "not worse beyond the margin in",
            NOT_SHOWN: "neither equal nor better, as far as is shown, in"}  # fmt: skip
    parts = [f"{said[verdict]} {titles(measures)}" for verdict, measures in told.items() if measures]
    return f"{row.name}{at(row)} is {', and '.join(parts)}."


def equivalence_table(proof: Proof) -> list[dict[str, str]]:
    """Every difference of our rows from the teacher, and from the teacher trained as they were."""
    bases = {"the teacher": None} | ({CONTROL.name: known} if (known := control(proof)) else {})
    return [
        {
            "row": row.name,
            "beside": name,
            "metric": one.measure.title,
            "difference": signed(one.difference),
            "seeds": bounds(*one.seeds),
            "with what seeds leave open": bounds(one.of_trainings.low, one.of_trainings.high),
            "allowed": f"±{one.margin:.2g}",
            "these students are": one.verdict,
        }
        for row in our_rows(proof)
        for name, base in bases.items()
        for one in equivalences(proof, row, base)
    ]
