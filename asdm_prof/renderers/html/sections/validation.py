"""Predicted against measured, on random plans and on this report's students: how far predictions can be believed."""

from __future__ import annotations

from collections.abc import Sequence

from asdm.records.bench import BenchStudent
from asdm.records.measurement import Estimate
from asdm_prof.records import ValidatedPlan, Validation
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import percent, plain, plural, quoted, ratio
from asdm_prof.renderers.html.content import Cell, Column, Paragraph, Section, Table, missing, picture
from asdm_prof.renderers.html.svg import BAND, Predicted, prediction_scatter
from asdm_prof.renderers.html.tables import table


def section(report: Report) -> Section | None:
    """Predicted against measured on random plans."""
    validation = report.validation
    if validation is None:
        return None
    scatter = prediction_scatter("validation", [_point(plan) for plan in validation.plans])
    use = "used" if validation.correction.helps else "not used"
    caption = [answer(validation), _coverage(validation), f"The correction per kind of edit is {use}."]
    caption += [blur_sentence(validation)] if validation.is_blurred else []
    return Section("", [picture(scatter, "Random plans, predicted against measured", " ".join(caption))])


def of_record(validation: Validation) -> list[Section]:
    """What `asdm-prof validate` prints: the answer, every plan, and what the errors taught."""
    lines = lessons(validation)
    return [
        Section("", [Paragraph([answer(validation)], "lead")]),
        Section("Predicted and measured", [plans_table(validation)]),
        Section("What it means for a plan", [Paragraph([line]) for line in lines]),
    ]


def answer(validation: Validation) -> str:
    """How far measured students were from their predictions, in one sentence."""
    return plain(
        f"{plural(len(validation.plans), 'random legal plan')}, built and measured in pairs "
        f"({validation.family}, {validation.backend}, {validation.dtype}): {percent(validation.mape)} of the teacher’s "
        f"latency away on average, 95 % of them within {percent(validation.p95)}, bias {100 * validation.bias:+.1f} %, "
        f"rank correlation {validation.rank_correlation:.3f}.",
        400,
    )


def _coverage(validation: Validation) -> str:
    return f"The predictions’ 95 % intervals held for {percent(validation.coverage)}."


def blur_sentence(validation: Validation) -> str:
    """That the machine was too noisy for the errors, and what to do."""
    return (
        f"The measured ratios are themselves known to ±{percent(validation.blur)} only (95 %), so these errors are as "
        "much the machine’s as the predictions’: close other programs, or give each plan more --time-budget."
    )


def lessons(validation: Validation) -> list[str]:
    """How often intervals held, what the correction does, and the σ that a plan will use."""
    correction = validation.correction
    verdict = "used by plans" if correction.helps else "not used"
    return [
        f"{_coverage(validation)[:-1]} of the plans (* where not); intervals from the other plans’ errors for "
        f"{percent(validation.calibrated_coverage)}.",
        *([blur_sentence(validation)] if validation.is_blurred else []),
        f"The tightest budget accepted at confidence 0.95 held for {percent(validation.within_budget)} of the plans.",
        f"Correcting each kind of edit takes the error of a plan left out from {100 * correction.rms_without:.2f} % to "
        f"{100 * correction.rms_with:.2f} %: {verdict}.",
        f"asdm-prof plan --validation plans with σ = {100 * validation.sigma:.2f} % of the teacher.",
    ]


def _point(plan: ValidatedPlan) -> Predicted:
    measured = Estimate(median=plan.measured_ratio, low=plan.measured_low, high=plan.measured_high)
    return Predicted("", plan.predicted_ratio, (plan.low, plan.high), measured)


def plans_table(validation: Validation) -> Table:
    """Every plan as student / teacher, predicted and measured; a star where its 95 % interval did not hold."""
    plans = validation.plans
    predicted = [Cell(ratio(p.predicted_ratio), f"[{p.low:.2f}, {p.high:.2f}]") for p in plans]
    measured = [Cell(ratio(p.measured_ratio), f"[{p.measured_low:.2f}, {p.measured_high:.2f}]") for p in plans]
    fields = [
        (Column("edits", terminal_from=0), [Cell(str(len(plan.edits))) for plan in plans]),
        (Column("predicted", terminal_from=0, bounds_from=60), predicted),
        (Column("measured", terminal_from=0, bounds_from=60), measured),
        (Column("off by", terminal_from=0), [Cell(f"{100 * plan.error:+.1f} %") for plan in plans]),
        (Column("", terminal_from=0), [Cell("" if p.low <= p.measured_ratio <= p.high else "*") for p in plans]),
        (Column("pairs", terminal_from=70), [Cell(str(len(plan.student_s))) for plan in plans]),
    ]
    return table("validated", "Random plans, predicted and measured.", fields)


# ---------------------------------------------------------------------------------------------- students


def students(report: Report) -> Section:
    """Every student that came with a prediction, beside the line on which predictions are right."""
    title = "Predicted against measured"
    students = [student for student in report.students if student.predicted_ratio is not None]
    if students:
        scatter = prediction_scatter("prediction", [_student_point(report, student) for student in students])
        return Section(title, [picture(scatter, title, _students_caption(students))])
    command = f"asdm bench --teacher {quoted(report.profile.family)} --student plan.json"
    if report.benches:
        lead = "No student that was measured came with a prediction. "
        return Section(title, [missing(lead, command, " measures one that does.")])
    purpose = " measures a plan’s student against its teacher."
    return Section(title, [missing("No student was measured yet. ", command, purpose)])


def _student_point(report: Report, student: BenchStudent) -> Predicted:
    low, high = student.predicted_low, student.predicted_high
    bounds = None if low is None or high is None else (low, high)
    predicted = student.predicted_ratio or 0.0
    return Predicted(student.name, predicted, bounds, student.predicted_latency_ratio, report.is_own(student))


def _students_caption(students: Sequence[BenchStudent]) -> str:
    """How many predictions held, and the one that missed most."""
    misses = [
        (student.predicted_latency_ratio.median - (student.predicted_ratio or 0.0), student) for student in students
    ]
    close = sum(abs(miss) <= BAND for miss, _ in misses)
    miss, worst = max(misses, key=lambda row: abs(row[0]))
    side = "slower" if miss > 0 else "faster"
    return plain(
        f"Within {ratio(BAND)} of the line on which prediction and measurement agree (the band): {close} of "
        f"{plural(len(students), 'student')}. Largest miss: {worst.name}, {ratio(abs(miss))} {side} than predicted.",
        400,
    )
