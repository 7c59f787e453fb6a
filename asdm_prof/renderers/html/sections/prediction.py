"""Predicted against measured: the students of this report."""

from __future__ import annotations

from collections.abc import Sequence

from asdm.records.bench import BenchStudent
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, plural, ratio
from asdm_prof.renderers.html.content import Section, code, missing, picture
from asdm_prof.renderers.html.svg import BAND, Predicted, prediction_scatter


def section(report: Report) -> Section:
    """Every student that came with a prediction, beside the line on which predictions are right."""
    title = "Predicted against measured"
    students = [student for student in report.students if student.predicted_ratio is not None]
    if students:
        scatter = prediction_scatter("prediction", [_point(report, student) for student in students])
        return Section(title, [picture(scatter, title, _caption(students))])
    command = code(f"asdm bench --teacher {plain(report.profile.family)} --student plan.json")
    if report.benches:
        lead = "No student that was measured came with a prediction. "
        return Section(title, [missing(lead, command, " measures one that does.")])
    purpose = " measures a plan’s student against its teacher."
    return Section(title, [missing("No student was measured yet. ", command, purpose)])


def _point(report: Report, student: BenchStudent) -> Predicted:
    low, high = student.predicted_low, student.predicted_high
    bounds = None if low is None or high is None else (low, high)
    predicted = student.predicted_ratio or 0.0
    return Predicted(student.name, predicted, bounds, student.unet_latency_ratio, report.is_own(student))


def _caption(students: Sequence[BenchStudent]) -> str:
    """How many predictions held, and the one that missed most."""
    misses = [(student.unet_latency_ratio.median - (student.predicted_ratio or 0.0), student) for student in students]
    close = sum(abs(miss) <= BAND for miss, _ in misses)
    miss, worst = max(misses, key=lambda row: abs(row[0]))
    side = "slower" if miss > 0 else "faster"
    return plain(
        f"Within {ratio(BAND)} of the line on which prediction and measurement agree (the band): {close} of "
        f"{plural(len(students), 'student')}. Largest miss: {worst.name}, {ratio(abs(miss))} {side} than predicted.",
        400,
    )
