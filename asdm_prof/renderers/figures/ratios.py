"""Students' latency ratios: predicted beside measured."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asdm.records.bench import BenchStudent
from asdm.records.measurement import Estimate
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, ratio, ratio_interval
from asdm_prof.renderers.figures.style import COLOURS, INK, ONE_COLUMN, QUIET, name_points, new_figure, span

# ---------------------------------------------------------------------------------------------- students


def predicted_vs_measured(report: Report) -> Figure | None:
    """The plan's promise against the paired measurement, with the identity line."""
    points = [(s.predicted_ratio, s) for s in _students(report) if s.predicted_ratio is not None]
    if not points:
        return None
    figure = new_figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    low, high = span([edge for x, student in points for edge in (x, *_bounds(x, student))])
    axes.plot([low, high], [low, high], color=QUIET, linewidth=0.7)
    for x, student in points:
        y = student.unet_latency_ratio
        x_low, x_high, *_ = _bounds(x, student)
        axes.hlines(y.median, x_low, x_high, color=COLOURS["resnet"], linewidth=0.8)
        axes.vlines(x, y.low, y.high, color=COLOURS["resnet"], linewidth=0.8)
        axes.plot(x, y.median, "o", color=COLOURS["resnet"], markersize=4)
    name_points(axes, [(x, s.unet_latency_ratio.median, s.name) for x, s in points], low, high)
    hint = "line: predicted = measured\nabove it: slower than predicted"
    axes.text(0.03, 0.98, hint, va="top", size=6, color=QUIET, transform=axes.transAxes)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("predicted UNet latency ratio")
    axes.set_ylabel("measured UNet latency ratio")
    return figure


def students(report: Report) -> Figure | None:
    """UNet and whole-image latency of every benched student as ratios to the teacher, with intervals."""
    benched = _students(report)
    if not benched:
        return None
    figure = new_figure(ONE_COLUMN, 0.75 + 0.42 * len(benched))
    axes = figure.subplots()
    for row, student in enumerate(benched):
        _ratio_bar(axes, row - 0.2, student.unet_latency_ratio, "UNet", COLOURS["resnet"], "")
        if student.image_latency_ratio is not None:
            _ratio_bar(axes, row + 0.2, student.image_latency_ratio, "image", "#009E73", "////")
    ratios = [r for s in benched for r in (s.unet_latency_ratio, s.image_latency_ratio) if r is not None]
    axes.axvline(1, color=QUIET, linewidth=0.7, linestyle=":")
    axes.set_xlim(0, 1.02 * max(1.0, *(r.high for r in ratios)))
    axes.set_ylim(len(benched) - 0.45, -0.55)
    axes.set_yticks(range(len(benched)), [plain(student.name, 18) for student in benched])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("latency, student / teacher")
    return figure


def _students(report: Report) -> list[BenchStudent]:
    return [student for bench in report.benches for student in bench.students]


def _bounds(predicted: float, student: BenchStudent) -> tuple[float, float, float, float]:
    """Both intervals: predicted low and high, measured low and high."""
    low = predicted if student.predicted_low is None else student.predicted_low
    high = predicted if student.predicted_high is None else student.predicted_high
    return low, high, student.unet_latency_ratio.low, student.unet_latency_ratio.high


def _ratio_bar(axes: Axes, y: float, value: Estimate, what: str, colour: str, hatch: str) -> None:
    axes.barh(y, value.median, height=0.38, color=colour, hatch=hatch, edgecolor="white")
    axes.hlines(y, value.low, value.high, color=INK, linewidth=0.8)
    text = f"{what} {ratio(value.median)} {ratio_interval(value)}"
    axes.text(1.03, y, text, va="center", size=6, transform=axes.get_yaxis_transform())


# ---------------------------------------------------------------------------------------------- validation


def validation(report: Report) -> Figure | None:
    """Random plans: the prediction with its 95 % interval against the paired measurement with its own."""
    result = report.validation
    if result is None:
        return None
    figure = new_figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    edges = [edge for one in result.plans for edge in (one.low, one.high, one.measured_low, one.measured_high)]
    low, high = span(edges)
    axes.plot([low, high], [low, high], color=QUIET, linewidth=0.7)
    for one in result.plans:
        held = one.low <= one.measured_ratio <= one.high
        colour = COLOURS["resnet"] if held else COLOURS["transformer"]
        axes.hlines(one.measured_ratio, one.low, one.high, color=colour, linewidth=0.8)
        axes.vlines(one.predicted_ratio, one.measured_low, one.measured_high, color=colour, linewidth=0.8)
        axes.plot(one.predicted_ratio, one.measured_ratio, "o" if held else "s", color=colour, markersize=3)
    hint = (
        f"mean error {100 * result.mape:.1f} %, bias {100 * result.bias:+.1f} %\nsquares: outside their 95 % interval"
    )
    axes.text(0.03, 0.98, hint, va="top", size=6, color=QUIET, transform=axes.transAxes)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("predicted UNet latency ratio")
    axes.set_ylabel("measured UNet latency ratio")
    return figure
