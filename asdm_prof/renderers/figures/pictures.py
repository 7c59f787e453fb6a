"""The quality of students' pictures."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from asdm.records.bench import MEASURES
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import metric_name, plain
from asdm_prof.renderers.figures.ratios import _students
from asdm_prof.renderers.figures.style import COLOURS, INK, ONE_COLUMN, QUIET, TWO_COLUMNS, new_figure


def quality(report: Report) -> Figure | None:
    """Every quality metric of the students beside the teacher's, whose own noise is shaded."""
    judged = [student for student in _students(report) if student.quality]
    names = list(dict.fromkeys(name for student in judged for name in student.quality))
    if not names:
        return None
    figure = new_figure(TWO_COLUMNS, 0.5 + (0.35 + 0.22 * len(judged)) * len(names))
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        known = next(student.quality[name] for student in judged if name in student.quality)
        if known.teacher is not None:
            noise = known.noise_floor or 0.0
            lowest = MEASURES[name].lowest if name in MEASURES else -math.inf
            axes.axvspan(max(known.teacher - noise, lowest), known.teacher + noise, color="#DDDDDD")
            axes.axvline(known.teacher, color=QUIET, linewidth=0.8)
        for y, student in enumerate(judged):
            if metric := student.quality.get(name):
                axes.hlines(y, metric.low, metric.high, color=INK, linewidth=0.9)
                axes.plot(metric.value, y, "o", color=COLOURS["resnet"], markersize=3.5)
        axes.set_yticks(range(len(judged)), [plain(student.name, 18) for student in judged])
        axes.set_ylim(len(judged) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{metric_name(name)} (line: teacher, shaded: its noise)", size=7, loc="left")
    return figure


# ---------------------------------------------------------------------------------------------- search


def search(report: Report) -> Figure | None:
    """Every student of a search: latency against the quality that ranked them, with both 95 % intervals."""
    result = report.search
    if result is None or not result.students:
        return None
    measure = MEASURES[result.metric]
    marks = [one.quality[result.metric] for one in result.students]
    figure = new_figure(ONE_COLUMN, 2.4)
    axes = figure.subplots()
    if marks[0].teacher is not None:
        noise = marks[0].noise_floor or 0.0
        axes.axhspan(max(marks[0].teacher - noise, measure.lowest), marks[0].teacher + noise, color="#DDDDDD")
        axes.axhline(marks[0].teacher, color=QUIET, linewidth=0.8)
    for one, mark in zip(result.students, marks, strict=True):
        colour = COLOURS["resnet" if one.in_front else "glue"]
        axes.hlines(mark.value, one.ratio.low, one.ratio.high, color=colour, linewidth=0.8)
        axes.vlines(one.ratio.median, mark.low, mark.high, color=colour, linewidth=0.8)
        axes.plot(one.ratio.median, mark.value, "o" if one.in_front else "s", color=colour, markersize=4)
        label = f"{one.candidate}, {one.steps} steps"
        axes.annotate(label, (one.ratio.median, mark.value), (3, 2), textcoords="offset points", size=5.5)
    axes.set_xlabel("UNet latency, student / teacher")
    axes.set_title(
        f"{measure.title} ({measure.direction})\ncircles: no other is both faster and better", size=7, loc="left"
    )
    return figure
