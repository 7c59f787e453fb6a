"""Students made in several ways from equal training: what follows, in words, pictures and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.content import NONE, Block, Cell, Column, Figure, Paragraph, Picture, Section
from asdm_prof.renderers.html.tables import name_cells, table
from benchmarks.proof import evidence
from benchmarks.proof.records import Proof


def section(report: Report) -> Section | None:
    """A-SDM against BK-SDM at equal latency and equal training."""
    proof: Proof | None = report.extra.get("proof")
    if proof is None or not proof.rows[0].results or not evidence.trained(proof):
        return None
    said = [evidence.verdict_sentence(one) for one in evidence.verdicts(proof)]
    said += [*evidence.equivalence_sentences(proof), evidence.unbiased_sentence(proof)]
    blocks: list[Block] = [Paragraph([plain(sentence, 900)]) for sentence in said]
    pictures = list(_tradeoffs(proof))
    if pictures:
        blocks.append(Figure(pictures, [_caption(proof)]))
    blocks.append(_table("proof", "Every row of the proof, and the teacher’s own noise.", evidence.table(proof)))
    if equal := evidence.equivalence_table(proof):
        blocks.append(
            _table("equal", "Our rows beside the teacher, and beside the teacher trained as they were.", equal)
        )
    if splits := evidence.splits_table(proof):
        blocks.append(_table("splits", "By captions, with their number.", splits))
    if parts := evidence.parts_table(proof):
        blocks.append(_table("parts", evidence.parts_sentence(proof), parts))
    return Section("Proof: equal latency, equal training", blocks, "proof")


def _caption(proof: Proof) -> str:
    counts = {len(row.results) for row in evidence.trained(proof)}
    seeds = "one training seed, so what seeds do is in no interval" if counts == {1} else "pictures and training seeds"
    return (
        "Ours as circles, others as squares; the line is the teacher, shaded by how far it differs from itself with "
        f"other seeds. Bars are 95 % intervals over {seeds}."
    )


def _tradeoffs(proof: Proof) -> Iterator[Picture]:
    """Latency against each quality metric."""
    for place, measure in enumerate(evidence.counted_measures(proof)):
        teacher, students = evidence.spread(proof.rows[0], measure.name), []
        for row in evidence.beside_teacher(proof):
            quality = evidence.spread(row, measure.name)
            if row.latency and quality:
                ours = row.name.startswith("ours")
                students.append(charts.Student(row.name, row.latency.ratio, quality.estimate(), ours))
        if teacher and students:
            noise = evidence.noise_floor(proof, measure.name)
            drawn = charts.tradeoff(f"proof-{place}", measure, students, teacher.value, noise)
            yield Picture(drawn, "Quality at each latency")


def _table(name: str, caption: str, rows: Sequence[Mapping[str, str]]) -> Block:
    """A table of texts, of which those that start with a number are sorted by it."""
    texts = {column: [row[column] for row in rows] for column in rows[0]}
    named = {column for column, cells in texts.items() if not all(map(_is_figure, cells))}
    fields = [
        (
            Column(column, numeric=column not in named),
            name_cells(cells, 80) if column in named else [_cell(one) for one in cells],
        )
        for column, cells in texts.items()
    ]
    return table(name, caption, fields)


def _is_figure(text: str) -> bool:
    try:
        return not text or math.isfinite(float(text.partition(" ")[0]))
    except ValueError:
        return False


def _cell(text: str) -> Cell:
    value, _, interval = text.partition(" ")
    return Cell(value, interval, float(value)) if value else NONE
