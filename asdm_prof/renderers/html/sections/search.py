"""A search for students: the best, all of them in a picture and as a table, and what it took."""

from __future__ import annotations

from asdm.records.bench import MEASURES
from asdm.records.measurement import Estimate
from asdm_prof.records import Search, SearchedStudent
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import metric_name, number, plain, ratio, ratio_interval
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.content import Block, Cell, Column, Paragraph, Section, Table, picture
from asdm_prof.renderers.html.tables import Field, number_cells, table


def section(report: Report) -> Section | None:
    """Students that a search trained and measured."""
    search = report.search
    if search is None or not search.students:
        return None
    measure, first = MEASURES[search.metric], search.students[0].quality[search.metric]
    blocks: list[Block] = [Paragraph([answer(search)])]
    if first.teacher is not None:
        students = [
            charts.Student(f"candidate {one.candidate}", one.ratio, _quality(search, one), one.in_front)
            for one in search.students
        ]
        drawn = charts.tradeoff("search", measure, students, first.teacher, first.noise_floor or 0.0)
        blocks.append(picture(drawn, "Quality at each latency", _caption(search)))
    return Section("A search for students", [*blocks, students_table(search)], "search")


def of_record(search: Search) -> list[Section]:
    """What `asdm-prof search` prints: who is on the front, every measured student, and what it took."""
    return [
        Section("", [Paragraph([answer(search)], "lead")]),
        Section("Measured students, those that were trained longest first", [students_table(search)]),
        Section("What it took", [Paragraph([line]) for line in lines(search)]),
    ]


def answer(search: Search) -> str:
    """The best student within the budget in one sentence."""
    best = next((student for student in search.students if student.within_budget), None)
    budget = f"{search.family}: no student that was measured is within the budget {search.budget}."
    if best is None:
        return plain(budget, 400)
    quality = best.quality[search.metric]
    return plain(
        f"{search.family} within {search.budget}: candidate {best.candidate} is best, at "
        f"{ratio(best.ratio.median)} {ratio_interval(best.ratio)} of the teacher’s latency, "
        f"{metric_name(search.metric)} {number(quality.value)} [{number(quality.low)}, {number(quality.high)}] after "
        f"{best.steps} steps.",
        400,
    )


def rungs(search: Search) -> str:
    """How many candidates trained to which step, rung by rung."""
    return ", ".join(f"{rung.candidates} to step {rung.steps}" for rung in search.rungs)


def lines(search: Search) -> list[str]:
    """What it took, what failed, and where the front's students are."""
    trials = ", ".join(f"{n} {fate}" for fate, n in search.trials.items() if n)
    floor = next((student.quality[search.metric].noise_floor for student in search.students), None)
    sentences = [f"Trained {rungs(search)}: {search.training_steps} steps in all. Trials: {trials}."]
    if floor is not None:
        better = "higher" if search.maximise else "lower"
        sentences.append(
            f"Quality is {metric_name(search.metric)}, where {better} is better; its noise floor is {number(floor)}."
        )
    sentences += [f"Candidate {name} has no measurement: {plain(why)}" for name, why in search.failed.items()]
    sentences += [
        f"Candidate {student.candidate}: {plain(student.folder)} (machine {plain(student.host)})"
        for student in search.front()
    ]
    return sentences


def _caption(search: Search) -> str:
    return (
        f"Trained: {rungs(search)}, {search.training_steps} steps in all. Circles: no other student is both faster and "
        "better. The line is the teacher, shaded by how far it differs from itself with other seeds; bars are 95 % "
        "intervals."
    )


def _quality(search: Search, student: SearchedStudent) -> Estimate:
    metric = student.quality[search.metric]
    return Estimate(median=metric.value, low=metric.low, high=metric.high)


def students_table(search: Search) -> Table:
    """Every candidate as it was last measured; "front" marks those that no other beats."""
    students = search.students
    rungs_of = [f"{student.rung + 1} of {len(search.rungs)}" for student in students]
    ratios = [_ratio_cell(student.ratio) for student in students]
    fields: list[Field] = [
        (Column("candidate", terminal_from=0, short="no."), number_cells([s.candidate for s in students], 0)),
        (Column("rung", terminal_from=0, on_page=False), [Cell(text) for text in rungs_of]),
        (Column("trained", "steps", terminal_from=0, short="steps"), number_cells([s.steps for s in students], 0)),
        (Column("predicted", "×", terminal_from=0), number_cells([s.predicted.ratio for s in students], 2)),
        (Column("measured", "×", terminal_from=0, bounds_from=0, short="UNet ×"), ratios),
    ]
    shared = [name for name in students[0].quality if all(name in s.quality for s in students)] if students else []
    for metric in shared:
        qualities = [student.quality[metric] for student in students]
        cells = [Cell(number(q.value), f"[{number(q.low)}, {number(q.high)}]", q.value) for q in qualities]
        width = 0 if metric == search.metric else None
        fields.append((Column(metric_name(metric), terminal_from=width, bounds_from=width, short="quality"), cells))
    marks = [
        " ".join(word for word, holds in (("front", s.in_front), ("over", not s.within_budget)) if holds)
        for s in students
    ]
    fields.append((Column("front", numeric=False, terminal_from=0, short=""), [Cell(mark) for mark in marks]))
    caption = "Every candidate as it was last measured, those that trained longest first."
    return table("search", caption, fields)


def _ratio_cell(value: Estimate) -> Cell:
    return Cell(f"{value.median:.3f}", f"[{value.low:.3f}, {value.high:.3f}]", value.median, value.low, value.high)
