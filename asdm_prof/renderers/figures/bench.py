"""Students as they were benchmarked: latency beside what was predicted, and the quality of their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asdm.records.bench import MEASURES, BenchStudent, Metric
from asdm.records.measurement import Estimate
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import metric_name, plain, ratio, ratio_interval
from asdm_prof.renderers.figures import style

Point = tuple[Estimate, Estimate, bool]  # predicted, measured, whether the prediction's interval held


def predicted_vs_measured(report: Report) -> Figure | None:
    """The plan's promise against the paired measurement, with the identity line."""
    students = [(_predicted(s.predicted_ratio, s), s) for s in report.students if s.predicted_ratio is not None]
    if not students:
        return None
    points = [(predicted, student.predicted_latency_ratio, True) for predicted, student in students]
    names = [(predicted.median, s.predicted_latency_ratio.median, s.name) for predicted, s in students]
    return _against_prediction(points, 4, "line: predicted = measured\nabove it: slower than predicted", names)


def _predicted(predicted: float, student: BenchStudent) -> Estimate:
    low, high = student.predicted_low, student.predicted_high
    return Estimate(median=predicted, low=predicted if low is None else low, high=predicted if high is None else high)


def validation(report: Report) -> Figure | None:
    """Random plans: the prediction with its 95 % interval against the paired measurement with its own."""
    result = report.validation
    if result is None:
        return None
    points = [
        (
            Estimate(median=one.predicted_ratio, low=one.low, high=one.high),
            Estimate(median=one.measured_ratio, low=one.measured_low, high=one.measured_high),
            one.low <= one.measured_ratio <= one.high,
        )
        for one in result.plans
    ]
    hint = f"mean error {100 * result.mape:.1f} %, bias {100 * result.bias:+.1f} %"
    return _against_prediction(points, 3, f"{hint}\nsquares: outside their 95 % interval")


def _against_prediction(
    points: Sequence[Point], size: float, hint: str, names: Sequence[tuple[float, float, str]] = ()
) -> Figure:
    """Predicted ratios across, measured ones up, and the line where they are equal."""
    figure, axes = style.one_panel(style.ONE_COLUMN, 2.6)
    low, high = style.span([edge for x, y, _ in points for edge in (x.low, x.high, x.median, y.low, y.high)])
    axes.plot([low, high], [low, high], color=style.QUIET, linewidth=0.7)
    for x, y, held in points:
        style.cross(axes, x, y, "o" if held else "s", style.COLOURS["resnet" if held else "transformer"], size)
    if names:
        style.name_points(axes, list(names), low, high)
    axes.text(0.03, 0.98, hint, va="top", size=6, color=style.QUIET, transform=axes.transAxes)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="predicted UNet latency ratio", ylabel="measured UNet latency ratio")
    return figure


def students(report: Report) -> Figure | None:
    """UNet and whole-image latency of every benched student as ratios to the teacher, with intervals."""
    benched = report.students
    if not benched:
        return None
    figure, axes = style.one_panel(style.ONE_COLUMN, 0.75 + 0.42 * len(benched))
    for row, student in enumerate(benched):
        _ratio_bar(axes, row - 0.2, student.unet_latency_ratio, "UNet", style.COLOURS["resnet"], "")
        if student.image_latency_ratio is not None:
            _ratio_bar(axes, row + 0.2, student.image_latency_ratio, "image", "#009E73", "////")
    ratios = [r for s in benched for r in (s.unet_latency_ratio, s.image_latency_ratio) if r is not None]
    axes.axvline(1, color=style.QUIET, linewidth=0.7, linestyle=":")
    axes.set_xlim(0, 1.02 * max(1.0, *(r.high for r in ratios)))
    style.row_names(axes, [plain(student.name, 18) for student in benched], 0.55)
    axes.set_xlabel("latency, student / teacher")
    return figure


def _ratio_bar(axes: Axes, y: float, value: Estimate, what: str, colour: str, hatch: str) -> None:
    axes.barh(y, value.median, height=0.38, color=colour, hatch=hatch, edgecolor="white")
    axes.hlines(y, value.low, value.high, color=style.INK, linewidth=0.8)
    text = f"{what} {ratio(value.median)} {ratio_interval(value)}"
    axes.text(1.03, y, text, va="center", size=6, transform=axes.get_yaxis_transform())


def quality(report: Report) -> Figure | None:
    """Every quality metric of the students beside the teacher's, whose own noise is shaded."""
    judged = [student for student in report.students if student.quality]
    names = list(dict.fromkeys(name for student in judged for name in student.quality))
    if not names:
        return None
    figure = style.new_figure(style.TWO_COLUMNS, 0.5 + (0.35 + 0.22 * len(judged)) * len(names))
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        known = next(student.quality[name] for student in judged if name in student.quality)
        if known.teacher is not None:
            noise = known.noise_floor or 0.0
            lowest = MEASURES[name].lowest if name in MEASURES else -math.inf
            axes.axvspan(max(known.teacher - noise, lowest), known.teacher + noise, color="#DDDDDD")
            axes.axvline(known.teacher, color=style.QUIET, linewidth=0.8)
        for y, student in enumerate(judged):
            if metric := student.quality.get(name):
                axes.hlines(y, metric.low, metric.high, color=style.INK, linewidth=0.9)
                axes.plot(metric.value, y, "o", color=style.COLOURS["resnet"], markersize=3.5)
        style.row_names(axes, [plain(student.name, 18) for student in judged])
        axes.set_title(f"{metric_name(name)} (line: teacher, shaded: its noise)", size=7, loc="left")
    return figure


def search(report: Report) -> Figure | None:
    """Every student of a search: latency against the quality that ranked them, with both 95 % intervals."""
    result = report.search
    if result is None or not result.students:
        return None
    measure = MEASURES[result.metric]
    marks = [one.quality[result.metric] for one in result.students]
    figure, axes = style.one_panel(style.ONE_COLUMN, 2.4)
    if marks[0].teacher is not None:
        noise = marks[0].noise_floor or 0.0
        axes.axhspan(max(marks[0].teacher - noise, measure.lowest), marks[0].teacher + noise, color="#DDDDDD")
        axes.axhline(marks[0].teacher, color=style.QUIET, linewidth=0.8)
    for one, mark in zip(result.students, marks, strict=True):
        colour = style.COLOURS["resnet" if one.in_front else "glue"]
        style.cross(axes, one.ratio, _estimate(mark), "o" if one.in_front else "s", colour)
        label = f"{one.candidate}, {one.steps} steps"
        axes.annotate(label, (one.ratio.median, mark.value), (3, 2), textcoords="offset points", size=5.5)
    axes.set_xlabel("UNet latency, student / teacher")
    title = f"{measure.title} ({measure.direction})\ncircles: no other is both faster and better"
    axes.set_title(title, size=7, loc="left")
    return figure


def _estimate(metric: Metric) -> Estimate:
    return Estimate(median=metric.value, low=metric.low, high=metric.high)
