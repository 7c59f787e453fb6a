"""The proof as tables and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asdm.records.bench import Measure
from benchmarks.equivalence import Judged, spread_of
from benchmarks.proof.evidence.equal import equivalence_sentences, equivalence_table
from benchmarks.proof.evidence.parts import gates_sentence, parts_sentence, parts_table
from benchmarks.proof.evidence.rivals import verdict_sentence, verdicts
from benchmarks.proof.evidence.spreads import beside_teacher, counted_measures, noise_floor, over_seeds, spread, trained
from benchmarks.proof.evidence.words import figure, interval, markdown_table, safe
from benchmarks.proof.records import Proof, ProofRow


def table(proof: Proof) -> list[dict[str, str]]:
    """Every row with what it costs and what it is worth, in words and figures."""
    rows = [proof.rows[0], *beside_teacher(proof)]
    measures = counted_measures(proof)
    cells = [_row(row, measures, proof.rows[0]) for row in rows]
    floor = dict.fromkeys(cells[0], "") | {"row": "noise floor"}
    return [*cells, floor | {measure.title: figure(noise_floor(proof, measure.name)) for measure in measures}]


def _row(row: ProofRow, measures: Sequence[Measure], teacher: ProofRow) -> dict[str, str]:
    is_teacher, timed = row is teacher, row.latency
    trained_on = f"{len(row.results)} × {row.results[0].pictures:,}"
    texts = {
        "row": row.name,
        "UNet ×": "1" if is_teacher else "" if timed is None else interval(timed.ratio),
        "M parameters": f"{row.params / 1e6:.2f}",
        "seeds × pictures": "" if is_teacher else trained_on,
    }
    for measure in measures:
        one = spread(row, measure.name)
        texts[measure.title] = "" if one is None else interval(one.estimate())
    return texts


def splits_table(proof: Proof) -> list[dict[str, str]]:
    """Metrics of single pictures, of the captions that were trained on and of those that were held out."""
    splits = sorted(set(proof.splits), reverse=True)
    if len(splits) < 2:
        return []
    places = {split: np.array([one == split for one in proof.splits]) for split in splits}
    measures = [one for one in counted_measures(proof) if proof.noise[one.name].of == "pictures"]
    return [
        {"row": row.name}
        | {
            f"{measure.title}, {split} ({places[split].sum()})": interval(over_seeds(
                [spread_of(_some(result.metrics[measure.name], places[split])) for result in row.results],
                f"{row.name} {measure.name} {split}").estimate())
            for measure in measures
            for split in splits
        }
        for row in (proof.rows[0], *beside_teacher(proof))
    ]  # fmt: skip


def _some(judged: Judged, places: np.ndarray) -> Judged:
    some = np.array(judged.samples)[places]
    return Judged(value=float(some.mean()), of="pictures", samples=tuple(some.tolist()))


def unbiased_sentence(proof: Proof) -> str:
    """What Fréchet distances of ever more pictures would come to, as far as halves of them tell."""
    rows = [proof.rows[0], *beside_teacher(proof)]
    each = {
        row.name: np.mean([2 * one.value - np.mean(one.samples) for result in row.results
                           for one in (result.metrics["frechet_distance"],)])
        for row in rows
    }  # fmt: skip
    texts = [f"{name} {figure(float(value))}" for name, value in each.items()]
    return (
        f"Fréchet distances are of {proof.pictures} pictures beside the drawings of the same captions; so few make all "
        f"of them larger. Extrapolated from halves (2·d(n) − d(n/2)) they are {', '.join(texts)}."
    )


def markdown(proof: Proof, source: str) -> str:
    """The tables, the verdicts and what each component bought, as Markdown; `source` names the proof's file."""
    lines = [*markdown_table(table(proof)), ""]
    lines += [f"From `{source}`; 95 % intervals over pictures and seeds ({seeds_text(proof)}). {noise_sentence()}", ""]
    lines += [f"- {safe(verdict_sentence(verdict))}" for verdict in verdicts(proof)]
    lines += [f"- {safe(sentence)}" for sentence in equivalence_sentences(proof)]
    lines += [f"- {safe(unbiased_sentence(proof))}"]
    if equal := equivalence_table(proof):
        lines += ["", "Differences of these students, of pictures alone and with what training seeds leave open:", ""]
        lines += markdown_table(equal)
    if splits := splits_table(proof):
        lines += ["", "By captions, with their number:", "", *markdown_table(splits)]
    if parts := parts_table(proof):
        lines += ["", safe(parts_sentence(proof)), "", *markdown_table(parts)]
    if gates := gates_sentence(proof):
        lines += ["", safe(gates)]
    return "\n".join(lines).rstrip() + "\n"


def noise_sentence() -> str:
    return (
        "The noise floor is what the teacher differs from itself by with other noise, in 95 % of repetitions; all rows "
        "draw from the same noise."
    )


def seeds_text(proof: Proof) -> str:
    """How many seeds the rows have, and what that leaves out."""
    counts = [len(row.results) for row in trained(proof)] or [0]
    if max(counts) < 2:
        return "1 seed, so what training seeds do is not in the intervals"
    if min(counts) == max(counts):
        return f"{max(counts)} seeds"
    some = "; with 1, what training seeds do is not in the intervals" if min(counts) < 2 else ""
    return f"{min(counts)} to {max(counts)} seeds{some}; rows are compared by the seeds that both have"
