"""What a proof says: every row with its intervals, paired differences, and the sentences that follow from them."""

from benchmarks.proof.evidence.equal import (
    equivalence_sentences,
    equivalence_table,
    equivalences,
    margin,
    our_rows,
)
from benchmarks.proof.evidence.parts import components, gates_sentence, parts_sentence, parts_table
from benchmarks.proof.evidence.rivals import verdict_sentence, verdicts
from benchmarks.proof.evidence.spreads import beside_teacher, counted_measures, noise_floor, spread, trained
from benchmarks.proof.evidence.tables import markdown, splits_table, table, unbiased_sentence

__all__ = [
    "beside_teacher",
    "components",
    "counted_measures",
    "equivalence_sentences",
    "equivalence_table",
    "equivalences",
    "gates_sentence",
    "margin",
    "markdown",
    "noise_floor",
    "our_rows",
    "parts_sentence",
    "parts_table",
    "splits_table",
    "spread",
    "table",
    "trained",
    "unbiased_sentence",
    "verdict_sentence",
    "verdicts",
]
