"""Ways to make a student beside each other: quality at latency, and what each part is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asdm.records.bench import Measure
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers.figures.style import COLOURS, INK, QUIET, TWO_COLUMNS, cross, new_figure
from benchmarks.proof import evidence
from benchmarks.proof.records import Proof, ProofRow

# Who made a student, by hue and marker: ours, BK-SDM's, the paper's, nobody, and what an ablation leaves of one.
MAKERS = {"ours": ("o", "#0072B2"), "bk_sdm": ("D", "#CC79A7"), "a_sdm": ("s", "#D55E00"), "teacher": ("v", "#555555"),
          "ablation": ("^", "#999999")}  # fmt: skip
DASHES = ("-", "--", ":")


def maker(row: ProofRow) -> str:
    """The key of MAKERS of a proof's row."""
    if row.ablates:
        return "ablation"
    return next((key for key in ("ours", "bk_sdm", "teacher") if row.name.startswith(key)), "a_sdm")


def quality_at_latency(report: Report) -> Figure | None:
    """Latency against each quality metric, with both 95 % intervals; the teacher's noise is shaded."""
    proof: Proof | None = report.extra.get("proof")
    rows = [row for row in evidence.beside_teacher(proof) if row.latency] if proof and proof.rows[0].results else []
    if proof is None or not rows:
        return None
    measures = evidence.counted_measures(proof)
    figure = new_figure(TWO_COLUMNS, 2.2 * ((len(measures) + 2) // 2))
    panels = list(figure.subplots((len(measures) + 2) // 2, 2).flat)
    for axes, measure in zip(panels, measures, strict=False):
        _tradeoff(axes, proof, rows, measure)
    for axes in panels[len(measures) :]:
        axes.set_axis_off()
    _row_legend(panels[len(measures)], rows)
    return figure


def _tradeoff(axes: Axes, proof: Proof, rows: Sequence[ProofRow], measure: Measure) -> None:
    teacher, floor = evidence.spread(proof.rows[0], measure.name), evidence.noise_floor(proof, measure.name)
    if teacher:
        lowest = max(teacher.value - floor, measure.lowest)
        axes.axhspan(lowest, teacher.value + floor, color="#DDDDDD", linewidth=0)
        axes.axhline(teacher.value, color=QUIET, linewidth=0.8)
    for number, row in enumerate(rows, 1):
        quality = evidence.spread(row, measure.name)
        if quality is None or row.latency is None:
            continue
        marker, colour = MAKERS[maker(row)]
        x, y = row.latency.ratio, quality.estimate()
        cross(axes, x, y, marker, colour)
        axes.annotate(str(number), (x.median, y.median), (3, 2), textcoords="offset points", size=5.5)
    axes.set_xlabel("UNet latency, student / teacher")
    axes.set_title(f"{measure.title} ({measure.direction})", size=7, loc="left")


def _row_legend(axes: Axes, rows: Sequence[ProofRow]) -> None:
    """Numbers, markers and names in a panel of their own."""
    for number, row in enumerate(rows, 1):
        marker, colour = MAKERS[maker(row)]
        y = 1 - (number - 0.5) / max(len(rows), 8)
        axes.plot(0.03, y, marker, color=colour, markersize=4, transform=axes.transAxes, clip_on=False)
        name = f"{number}  {plain(row.name, 16)}: {plain(row.what, 44)}"
        axes.text(0.08, y, name, size=5.5, va="center", transform=axes.transAxes)


def components(report: Report) -> Figure | None:
    """What each component bought in each quality metric, with its 95 % interval."""
    proof: Proof | None = report.extra.get("proof")
    parts = evidence.components(proof) if proof and proof.rows[0].results else []
    if proof is None or not parts:
        return None
    measures = evidence.counted_measures(proof)
    figure = new_figure(TWO_COLUMNS, 0.9 + 0.2 * len(parts))
    for axes, measure in zip(figure.subplots(1, len(measures), sharey=True).flat, measures, strict=True):
        axes.axvline(0, color=QUIET, linewidth=0.7)
        for y, one in enumerate(parts):
            bought = one.bought[measure.name].estimate
            if bought:
                sure = measure.name in one.sure
                axes.hlines(y, bought.low, bought.high, color=INK, linewidth=0.9)
                axes.plot(bought.median, y, "o" if sure else "D", color=COLOURS["resnet" if sure else "glue"],
                          markersize=3.5)  # fmt: skip
        axes.set_title(measure.title, size=7, loc="left")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=3)
    axes = figure.axes[0]
    axes.set_yticks(range(len(parts)), [plain(one.row.what, 40) for one in parts], size=6)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    figure.supxlabel(
        "quality lost without it, with 95 % intervals (right: it helps; circles: sure for all together)", size=7
    )
    return figure


def learning_curves(report: Report) -> Figure | None:
    """What decisive rows draw at each checkpoint, in every quality metric: the mean of the seeds, and each of them."""
    proof: Proof | None = report.extra.get("proof")
    rows = [row for row in evidence.trained(proof) if row.results[0].curve] if proof and proof.rows[0].results else []
    if proof is None or not rows:
        return None
    measures = evidence.counted_measures(proof)
    figure = new_figure(TWO_COLUMNS, 2.4)
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False).flat, measures, strict=True):
        drawn: dict[str, int] = {}
        for row in rows:
            key = maker(row)
            dash = DASHES[drawn.get(key, 0) % len(DASHES)]
            drawn[key] = drawn.get(key, 0) + 1
            pictures_seen = [point.pictures for point in row.results[0].curve]
            each = np.array([[point.metrics[measure.name] for point in result.curve] for result in row.results])
            axes.plot(pictures_seen, each.mean(0), dash, color=MAKERS[key][1], linewidth=1.1, label=plain(row.name, 16))
            axes.plot(np.tile(pictures_seen, len(each)), each.flat, ".", color=MAKERS[key][1], markersize=2)
        axes.set_title(f"{measure.title}\n({measure.direction})", size=6, loc="left")
        axes.set_xlabel("pictures seen")
    figure.axes[0].legend(fontsize=5, frameon=False)
    return figure


PROOF = (quality_at_latency, components, learning_curves)
