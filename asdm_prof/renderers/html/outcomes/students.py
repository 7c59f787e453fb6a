"""Students: what they draw, how they were trained, which way of making them is best."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from asdm.records.bench import MEASURES, BenchResult, Drawing, Metric
from asdm.records.measurement import Estimate
from asdm_prof.analysis import evidence
from asdm_prof.records import Proof, Search, SearchedStudent, TrainingLog
from asdm_prof.renderers import _searches
from asdm_prof.renderers._format import metric_name, number, plain, plural
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.tables import NONE, Cell, Column, Table
from asdm_prof.renderers.html.view import View

PICTURE_BYTES = 115_000  # of base64, over all benchmarks: with these a report stays below half a megabyte

# ---------------------------------------------------------------------------------------------- quality and pictures


def quality(bench: BenchResult, number_: int) -> list[Markup]:
    """One picture for each metric of a benchmark."""
    names = list(dict.fromkeys(name for student in bench.students for name in student.quality))
    return [_quality_of(bench, name, f"quality-{number_}-{place}") for place, name in enumerate(names)]


def _quality_of(bench: BenchResult, metric: str, name: str) -> Markup:
    rows: list[tuple[str, Metric | None]] = [(student.name, student.quality.get(metric)) for student in bench.students]
    return charts.quality_bars(name, metric, rows, MEASURES[metric].direction if metric in MEASURES else "")


def quality_caption(bench: BenchResult) -> str:
    """How many figures of how many lie within the teacher's own noise."""
    judged = [
        abs(one.value - one.teacher) <= one.noise_floor
        for student in bench.students
        for one in student.quality.values()
        if one.teacher is not None and one.noise_floor is not None
    ]
    return (
        f"{sum(judged)} of {plural(len(judged), 'figure')} cannot be told from the teacher drawing with other seeds "
        "(shaded); whiskers are 95 % intervals."
    )


def pictures(bench: BenchResult, room: float = PICTURE_BYTES) -> dict[str, Any] | None:
    """The drawings that the benchmark kept, as far as they fit into `room` bytes of the page."""
    if not bench.drawings:
        return None
    shown: list[Drawing] = []
    size = 0
    for drawing in bench.drawings:
        size += sum(map(len, (drawing.real, drawing.teacher, *drawing.students)))
        if size > room:
            break
        shown.append(drawing)
    if not shown:
        return None
    students = [plain(student.name, 24) for student in bench.students]
    left = len(bench.drawings) - len(shown)
    return {
        "heads": ["real picture", f"{plain(bench.teacher.name, 24)} (teacher)", *students],
        "rows": [_picture_row(drawing, students) for drawing in shown],
        "caption": "Each row is one caption and one seed."
        + (f" {plural(left, 'more caption')} did not fit this page." if left else ""),
    }


def _picture_row(drawing: Drawing, students: Sequence[str]) -> dict[str, Any]:
    caption = plain(drawing.caption, 80)
    who = ["the real picture", "the teacher", *students]
    cells = [
        (_data_uri(png), f"{caption}, by {name}" if place else f"{caption}, {name}")
        for place, (png, name) in enumerate(zip((drawing.real, drawing.teacher, *drawing.students), who, strict=False))
    ]
    return {"caption": caption, "seed": drawing.seed, "cells": cells}


def _data_uri(png: str) -> str:
    """A PNG for `src`; what is none, or is broken, becomes an empty picture."""
    try:
        data = base64.b64decode(png, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    return f"data:image/png;base64,{png}" if data.startswith(b"\x89PNG\r\n") else ""


# ---------------------------------------------------------------------------------------------- proof


def proof(view: View) -> dict[str, Any] | None:
    """Students made in several ways from equal training: table, pictures, and what follows from them."""
    found = view.report.proof
    if found is None or not found.rows[0].results or not evidence.trained(found):
        return None
    counts = {len(row.results) for row in evidence.trained(found)}
    seeds = "one training seed, so what seeds do is in no interval" if counts == {1} else "pictures and training seeds"
    return {
        "pictures": list(_tradeoffs(found)),
        "caption": plain(
            "Ours as circles, others as squares; the line is the teacher, shaded what he differs by from himself with "
            f"other seeds. Bars are 95 % intervals over {seeds}.",
            400,
        ),
        "table": _proof_table(found),
        "verdicts": [plain(evidence.verdict_sentence(one), 900) for one in evidence.verdicts(found)],
        "groups": [
            (GROUPS[name], [plain(evidence.component_sentence(one), 600) for one in ones])
            for name, ones in evidence.groups(found).items()
        ],
    }


GROUPS = {
    "helped": "What helped",
    "mixed": "What helped in one metric and hurt in another",
    "did not help": "What did not help beyond its interval",
    "hurt": "What hurt",
}


def _tradeoffs(found: Proof) -> Iterator[Markup]:
    for place, measure in enumerate(evidence.judged_measures(found)):
        teacher, students = evidence.spread(found.rows[0], measure.name), []
        for row in evidence.trained(found):
            quality_ = evidence.spread(row, measure.name)
            if row.latency and quality_:
                ours = row.name.startswith("ours")
                students.append(charts.Student(row.name, row.latency.ratio, quality_.estimate(), ours))
        if teacher and students:
            noise = evidence.noise_floor(found, measure.name)
            yield charts.tradeoff(f"proof-{place}", measure, students, teacher.value, noise)


def _proof_table(found: Proof) -> Table:
    """The table of the proof; every cell with what it sorts by."""
    rows = evidence.table(found)
    first, *names = rows[0]
    columns = [Column(first, numeric=False), *(Column(name) for name in names)]
    cells = [[Cell(plain(row[first], 40)), *(_told(row[name]) for name in names)] for row in rows]
    return Table("proof", "Every row of the proof, and the teacher’s own noise.", columns, cells)


def _told(text: str) -> Cell:
    value, _, interval = text.partition(" ")
    return Cell(value, interval, float(value)) if value else NONE


# ---------------------------------------------------------------------------------------------- search


def search(view: View) -> dict[str, Any] | None:
    """Students that a search trained and measured: the best, all of them in a picture and as a table."""
    found = view.report.search
    if found is None or not found.students:
        return None
    measure = MEASURES[found.metric]
    first = found.students[0].quality[found.metric]
    shown = [
        charts.Student(f"candidate {one.candidate}", one.ratio, _quality_in(found, one), one.in_front)
        for one in found.students
    ]
    drawn = first.teacher is not None
    return {
        "answer": plain(_searches.answer(found), 400),
        "picture": charts.tradeoff("search", measure, shown, first.teacher or 0.0, first.noise_floor or 0.0)
        if drawn
        else None,
        "caption": plain(
            f"Trained: {_searches.rungs(found)}, {found.training_steps} steps in all. Circles: no other student "
            "is both faster and better. The line is the teacher, shaded what he differs by from "
            "himself with other seeds; bars are 95 % intervals.",
            400,
        ),
        "table": _search_table(found),
    }


def _quality_in(found: Search, one: SearchedStudent) -> Estimate:
    mark = one.quality[found.metric]
    return Estimate(median=mark.value, low=mark.low, high=mark.high)


def _search_table(found: Search) -> Table:
    columns = [
        Column("candidate"),
        Column("trained", "steps"),
        Column("predicted", "×"),
        Column("measured", "×"),
        *(Column(metric_name(name)) for name in found.students[0].quality),
        Column("front", numeric=False),
    ]
    rows = []
    for one in found.students:
        qualities = [one.quality[name] for name in found.students[0].quality]
        rows.append(
            [
                Cell(str(one.candidate), value=one.candidate),
                Cell(str(one.steps), value=one.steps),
                Cell(f"{one.predicted.ratio:.2f}", value=one.predicted.ratio),
                Cell(f"{one.ratio.median:.3f}", f"[{one.ratio.low:.3f}, {one.ratio.high:.3f}]", one.ratio.median),
                *(Cell(number(mark.value), f"[{number(mark.low)}, {number(mark.high)}]", mark.value)
                  for mark in qualities),
                Cell("front" if one.in_front else ""),
            ]
        )  # fmt: skip
    return Table("search", "Every candidate as it was last measured, those that trained longest first.", columns, rows)


# ---------------------------------------------------------------------------------------------- training


def training(view: View) -> dict[str, Any] | None:
    """Every loss term of a distillation over its steps."""
    log = view.report.log
    if log is None:
        return None
    ends = [f"{term} from {number(curve[0][1])} to {number(curve[-1][1])}"
            for term, curve in ((t, charts.smoothed(log.steps, log.terms[t])) for t in log.terms) if curve]  # fmt: skip
    return {
        "pictures": [charts.loss_curve(f"loss-{i}", term, log) for i, term in enumerate(log.terms)],
        "caption": plain(
            f"{plural(len(log.steps), 'logged step')}, up to step {max(log.steps)}{_stages(log)}: {', '.join(ends)}.",
            500,
        ),
    }


def _stages(log: TrainingLog) -> str:
    begun = ", ".join(f"{name} from step {first}" for name, first in log.stages.items())
    return f" ({begun})" if begun else ""
