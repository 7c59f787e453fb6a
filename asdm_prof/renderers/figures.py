"""Figures for a paper as PNG, SVG and PDF: `figures/<name>.{png,svg,pdf}`, byte for byte the same every time.

A figure is a function of the report that returns None where its data is missing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from asdm.measure.statistics import estimate
from asdm.records.bench import MEASURES, BenchStudent, Measure
from asdm.records.measurement import Estimate
from asdm.utils.io import write_whole
from asdm_prof.analysis import evidence
from asdm_prof.analysis import structure as resemblance
from asdm_prof.analysis.rank import rank
from asdm_prof.records import PartRecord, Profile, Proof, ProofRow
from asdm_prof.renderers import FamilyCost, Report
from asdm_prof.renderers._format import (
    count,
    count_unit,
    metric_name,
    plain,
    plural,
    ratio,
    ratio_interval,
    second_unit,
)

OUTPUT = "figures"

STYLE = Path(__file__).with_name("paper.mplstyle")
ONE_COLUMN, TWO_COLUMNS = 3.3, 6.8  # inches
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
# Okabe–Ito; hatch and marker say the same as the hue.
COLOURS = {"resnet": "#0072B2", "transformer": "#D55E00", "glue": "#999999"}
HATCHES = {"resnet": "", "transformer": "////", "glue": r"\\\\"}
MARKERS = {"resnet": "o", "transformer": "s"}
KINDS = {"resnet": "ResNet", "transformer": "Transformer (cross-attention)", "glue": "glue"}
COMPONENTS = {"unet": "UNet", "vae_decoder": "VAE decoder"}
INK, QUIET = "#222222", "#767676"


def render(report: Report, folder: Path, draws: Sequence[Any] | None = None) -> list[Path]:
    """Write every figure, or those of `draws`, that there is data for as PNG, SVG and PDF."""
    paths: list[Path] = []
    with matplotlib.style.context(STYLE, after_reset=True):
        for draw in FIGURES if draws is None else draws:
            figure = draw(report)
            if figure is not None:
                paths += _save(figure, folder / "figures" / draw.__name__)
    return paths


def _save(figure: Figure, stem: Path) -> Iterator[Path]:
    for suffix, metadata in METADATA.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        yield write_whole(stem.with_suffix(f".{suffix}"), buffer.getvalue(), force=True)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


# ---------------------------------------------------------------------------------------------- costs of a family


def fig1_costs(report: Report) -> Figure | None:
    """Parameters and computation per image of text encoder, UNet and VAE (Fig. 1)."""
    if not report.family_costs:
        return None
    families = _by_family(report.family_costs)
    rows = [cost for family in families for cost in (None, *family)]  # None: the line for the family's name
    figure = _figure(TWO_COLUMNS, 0.45 + 0.17 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    _cost_bars(left, rows, lambda cost: cost.params, "parameters ({})")
    _cost_bars(right, rows, lambda cost: cost.macs * cost.calls, "MACs per image ({}; one MAC is two FLOPs)")
    left.set_yticks([y for y, cost in enumerate(rows) if cost], [_component(cost) for cost in rows if cost])
    left.set_ylim(len(rows) - 0.4, -0.6)
    for y, family in zip([y for y, cost in enumerate(rows) if cost is None], families, strict=True):
        left.text(0, y + 0.15, plain(family[0].title, 40), weight="bold", va="center")
    return figure


def _by_family(costs: Sequence[FamilyCost]) -> list[list[FamilyCost]]:
    """Families as they come; in each, the components in the order in which data flows."""
    flow = {"unet": 1, "vae_decoder": 2}
    names = dict.fromkeys(cost.family for cost in costs)
    return [
        sorted((c for c in costs if c.family == name), key=lambda c: (flow.get(c.component, 0), c.component))
        for name in names
    ]


def _component(cost: FamilyCost) -> str:
    name = COMPONENTS.get(cost.component, plain(cost.component, 20).replace("_", " "))
    return f"{name} ({plural(cost.calls, 'call')})"


def _cost_bars(axes: Axes, rows: list[FamilyCost | None], value: Callable[[FamilyCost], float], xlabel: str) -> None:
    most = max(value(cost) for cost in rows if cost)
    scale, unit = count_unit(most)
    for y, cost in enumerate(rows):
        if cost is None:
            continue
        unet = cost.component == "unet"
        end = value(cost) / scale
        axes.barh(y, end, height=0.75, color="#56B4E9" if unet else "#BBBBBB", hatch="" if unet else r"\\\\",
                  edgecolor="white")  # fmt: skip
        axes.annotate(count(value(cost)), (end, y), (3, 0), textcoords="offset points", va="center", size=7)
    axes.set_xlim(0, 1.2 * most / scale)
    axes.set_xlabel(xlabel.format(unit))
    axes.tick_params(axis="y", length=0)


# ---------------------------------------------------------------------------------------------- beside another model


def structure(report: Report) -> Figure | None:
    """What part of time and of parameters each block takes, here and in another model of the same blocks."""
    profile, other = report.profile, report.beside
    if other is None:
        return None
    rows = resemblance.rows(profile, other)[:-1]
    figure = _figure(TWO_COLUMNS, 3.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    models = ((profile.title, [row.ours for row in rows], -0.2), (other.title, [row.theirs for row in rows], 0.2))
    for (title, shares, shift), kind in zip(models, ("#0072B2", "#E69F00"), strict=True):
        places, hatch = [x + shift for x in range(len(rows))], "" if shift < 0 else "////"
        look: dict[str, Any] = {"width": 0.38, "color": kind, "hatch": hatch, "edgecolor": "white"}
        top.bar(places, [100 * one.time.median for one in shares], label=plain(title, 40), **look)
        _whiskers(top, places, [one.time.scaled(100) for one in shares])
        bottom.bar(places, [100 * one.params for one in shares], **look)
    top.set_ylabel("time (%)")
    bottom.set_ylabel("parameters (%)")
    bottom.set_xticks(range(len(rows)), [_block_label(profile, row.name) for row in rows])
    for axes in (top, bottom):
        axes.tick_params(axis="x", length=0)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


# ---------------------------------------------------------------------------------------------- where the time goes


def fig2_latency_and_parameters(report: Report) -> Figure | None:
    """Latency and parameters of Transformer and ResNet units, block by block (Fig. 2)."""
    profile = report.profile
    if not profile.units:
        return None
    figure = _figure(TWO_COLUMNS, 3.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    blocks = [block for block in profile.topology.blocks if any(unit.block == block for unit in profile.units)]
    scale, unit_name = second_unit(max(_time(profile, block, kind).median for block in blocks for kind in MARKERS))
    for kind, shift in (("transformer", -0.2), ("resnet", 0.2)):
        places = [x + shift for x in range(len(blocks))]
        times = [_time(profile, block, kind).scaled(1 / scale) for block in blocks]
        params = [sum(unit.params for unit in _members(profile, block, kind)) for block in blocks]
        _kind_bars(top, places, [time.median for time in times], [kind] * len(blocks), width=0.38)
        _whiskers(top, places, times)
        _kind_bars(bottom, places, [n / 1e6 for n in params], [kind] * len(blocks), width=0.38)
    top.set_ylabel(f"latency ({unit_name})")
    bottom.set_ylabel("parameters (M)")
    bottom.set_xticks(range(len(blocks)), [_block_label(profile, block) for block in blocks])
    for axes in (top, bottom):
        axes.tick_params(axis="x", length=0)
    _kind_legend(figure, ("transformer", "resnet"))
    return figure


def units_share(report: Report) -> Figure | None:
    """Share of the UNet's time of every unit and piece of glue, in the order in which data flows."""
    parts = report.profile.parts
    if not parts:
        return None
    figure = _figure(TWO_COLUMNS, 2.5)
    axes = figure.subplots()
    places = list(range(len(parts)))
    shares = [part.share.scaled(100) for part in parts]
    _kind_bars(axes, places, [share.median for share in shares], [part.kind for part in parts], width=0.8)
    _whiskers(axes, places, shares)
    axes.set_xticks(places, [plain(part.label.rpartition(".")[2], 16) for part in parts], rotation=90, size=6)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.7, len(parts) - 0.3)
    axes.set_ylabel("share of time (%)")
    _block_braces(axes, report.profile, parts)
    _kind_legend(figure, ("transformer", "resnet", "glue"))
    return figure


def _members(profile: Profile, block: str, kind: str) -> list[PartRecord]:
    return [unit for unit in profile.units if unit.block == block and unit.kind == kind]


def _time(profile: Profile, block: str, kind: str) -> Estimate:
    """Units of one kind in one block, added up run by run."""
    members = _members(profile, block, kind)
    if not members:
        return Estimate(median=0, low=0, high=0)
    return estimate([sum(run) for run in zip(*(unit.latency_s.samples for unit in members), strict=True)])


def _block_label(profile: Profile, block: str) -> str:
    label = next(unit.label for unit in profile.units if unit.block == block)
    return plain(label.partition(".")[0], 12)


def _kind_bars(axes: Axes, places: Sequence[float], values: list[float], kinds: list[str], width: float) -> None:
    axes.bar(
        places,
        values,
        width,
        color=[COLOURS[kind] for kind in kinds],
        hatch=[HATCHES[kind] for kind in kinds],
        edgecolor="white",
    )


def _whiskers(axes: Axes, places: Sequence[float], estimates: list[Estimate]) -> None:
    axes.vlines(places, [e.low for e in estimates], [e.high for e in estimates], color=INK, linewidth=0.8)


def _block_braces(axes: Axes, profile: Profile, parts: Sequence[PartRecord]) -> None:
    """A line and the block's name above the bars of each block."""
    roof = 1.06 * max(part.share.high for part in parts) * 100
    axes.set_ylim(0, 1.14 * roof)
    for block, members in groupby(enumerate(parts), key=lambda item: item[1].block):
        places = [x for x, _ in members]
        if block and any(unit.block == block for unit in profile.units):
            axes.hlines(roof, places[0] - 0.4, places[-1] + 0.4, color=QUIET, linewidth=0.8)
            axes.text((places[0] + places[-1]) / 2, 1.02 * roof, _block_label(profile, block), ha="center", size=7)


def _kind_legend(figure: Figure, kinds: Sequence[str]) -> None:
    patches = [Patch(facecolor=COLOURS[k], hatch=HATCHES[k], edgecolor="white", label=KINDS[k]) for k in kinds]
    figure.legend(handles=patches, loc="outside upper right", ncols=len(patches))


# ---------------------------------------------------------------------------------------------- redundancy


def redundancy(report: Report) -> Figure | None:
    """Units by rank: share of the time over share of the parameters, with intervals and tie groups."""
    ranked = rank(report.profile)
    if not ranked:
        return None
    figure = _figure(ONE_COLUMN, 0.8 + 0.125 * len(ranked))
    axes = figure.subplots()
    for row in ranked:
        axes.plot(row.redundancy.median, row.rank, MARKERS[row.kind], color=COLOURS[row.kind], markersize=4)
        axes.hlines(row.rank, row.redundancy.low, row.redundancy.high, color=INK, linewidth=0.9, zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", length=0)
    axes.axvline(1, color=QUIET, linewidth=0.6, linestyle=":")
    axes.set_xlabel("redundancy = share of time ÷ share of parameters")
    axes.set_yticks([row.rank for row in ranked], [plain(row.label, 20) for row in ranked], size=6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(ranked) + 0.8, 0.2)
    for group, members in groupby(ranked, key=lambda row: row.tie_group):
        _bracket(axes, [row.rank for row in members], group)
    axes.text(1.02, 0.2, "tie\ngroup", size=6, va="bottom", color=QUIET, transform=axes.get_yaxis_transform())
    _marker_legend(figure)
    return figure


def _bracket(axes: Axes, ranks: list[int], group: int) -> None:
    """A line at the right edge beside units that are not told apart."""
    edge = axes.get_yaxis_transform()
    axes.plot([1.01, 1.01], [ranks[0] - 0.3, ranks[-1] + 0.3], color=QUIET, transform=edge, clip_on=False)
    axes.text(1.03, (ranks[0] + ranks[-1]) / 2, str(group), size=6, va="center", transform=edge)


def _marker_legend(figure: Figure) -> None:
    lines = [
        Line2D([], [], linestyle="", marker=MARKERS[k], color=COLOURS[k], markersize=3.5, label=KINDS[k])
        for k in ("transformer", "resnet")
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=2, handletextpad=0.1)


# ---------------------------------------------------------------------------------------------- students


def predicted_vs_measured(report: Report) -> Figure | None:
    """The plan's promise against the paired measurement, with the identity line."""
    points = [(s.predicted_ratio, s) for s in _students(report) if s.predicted_ratio is not None]
    if not points:
        return None
    figure = _figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    low, high = _span([edge for x, student in points for edge in (x, *_bounds(x, student))])
    axes.plot([low, high], [low, high], color=QUIET, linewidth=0.7)
    for x, student in points:
        y = student.unet_latency_ratio
        x_low, x_high, *_ = _bounds(x, student)
        axes.hlines(y.median, x_low, x_high, color=COLOURS["resnet"], linewidth=0.8)
        axes.vlines(x, y.low, y.high, color=COLOURS["resnet"], linewidth=0.8)
        axes.plot(x, y.median, "o", color=COLOURS["resnet"], markersize=4)
    _name_points(axes, [(x, s.unet_latency_ratio.median, s.name) for x, s in points], low, high)
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
    figure = _figure(ONE_COLUMN, 0.75 + 0.42 * len(benched))
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


def _span(values: list[float], least: float = 0.1) -> tuple[float, float]:
    """Limits around all values with some air, and never narrower than `least`."""
    middle, half = (min(values) + max(values)) / 2, max(max(values) - min(values), least) / 2
    return middle - 1.3 * half, middle + 1.3 * half


def _name_points(axes: Axes, points: list[tuple[float, float, str]], low: float, high: float) -> None:
    """Names in a column right of the axes, from top to bottom as their points, each with a thin line to its own."""
    line = (high - low) / 18
    below = high + line
    for x, y, name in sorted(points, key=lambda point: (-point[1], -point[0])):
        below = min(y, below - line)
        axes.annotate(
            plain(name, 18), (x, y), (high + line / 2, below), va="center", size=6.5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def _ratio_bar(axes: Axes, y: float, value: Estimate, what: str, colour: str, hatch: str) -> None:
    axes.barh(y, value.median, height=0.38, color=colour, hatch=hatch, edgecolor="white")
    axes.hlines(y, value.low, value.high, color=INK, linewidth=0.8)
    text = f"{what} {ratio(value.median)} {ratio_interval(value)}"
    axes.text(1.03, y, text, va="center", size=6, transform=axes.get_yaxis_transform())


# ---------------------------------------------------------------------------------------------- validation


def validation(report: Report) -> Figure | None:
    """Random plans: the prediction with its 95 % interval against the paired measurement with its own."""
    found = report.validation
    if found is None:
        return None
    figure = _figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    edges = [edge for one in found.plans for edge in (one.low, one.high, one.measured_low, one.measured_high)]
    low, high = _span(edges)
    axes.plot([low, high], [low, high], color=QUIET, linewidth=0.7)
    for one in found.plans:
        held = one.low <= one.measured_ratio <= one.high
        colour = COLOURS["resnet"] if held else COLOURS["transformer"]
        axes.hlines(one.measured_ratio, one.low, one.high, color=colour, linewidth=0.8)
        axes.vlines(one.predicted_ratio, one.measured_low, one.measured_high, color=colour, linewidth=0.8)
        axes.plot(one.predicted_ratio, one.measured_ratio, "o" if held else "s", color=colour, markersize=3)
    hint = f"mean error {100 * found.mape:.1f} %, bias {100 * found.bias:+.1f} %\nsquares: outside their 95 % interval"
    axes.text(0.03, 0.98, hint, va="top", size=6, color=QUIET, transform=axes.transAxes)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("predicted UNet latency ratio")
    axes.set_ylabel("measured UNet latency ratio")
    return figure


def rank_transfer(report: Report) -> Figure | None:
    """Rank correlation of the units between runtimes and settings, as a table of numbers in shades."""
    found = report.comparison
    if found is None:
        return None
    names = [plain(profile.name, 28) for profile in found.profiles]
    side = 1.2 + 0.42 * len(names)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    least = min(min(row) for row in found.spearman)
    axes.imshow(found.spearman, cmap="Blues", vmin=min(least, 0.9) - 0.05, vmax=1.1)
    for y, row in enumerate(found.spearman):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", size=6.5, color=INK)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Spearman of the units’ ranks", size=7, loc="left")
    return figure


# ---------------------------------------------------------------------------------------------- roofline


def roofline(report: Report) -> Figure | None:
    """Every part's FLOPs per second over its FLOPs per byte, under what the machine reaches through this runtime."""
    profile, peaks = report.profile, report.profile.peaks
    parts = [part for part in profile.parts if part.macs and part.moved_bytes]
    if peaks is None or not parts:
        return None
    figure = _figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    intensity = [2 * part.macs / part.moved_bytes for part in parts]
    for part, x in zip(parts, intensity, strict=True):
        marker, colour = MARKERS.get(part.kind, "^"), COLOURS[part.kind]
        axes.plot(x, 2e-9 * part.macs / part.latency_s.median, marker, color=colour, markersize=3.5)
    low, high = min(intensity) / 1.5, max(*intensity, peaks.flops_per_s / peaks.bytes_per_s) * 1.5
    grid = [low * (high / low) ** (i / 100) for i in range(101)]
    roof = [min(x * peaks.bytes_per_s, peaks.flops_per_s) / 1e9 for x in grid]
    axes.plot(grid, roof, color=INK, linewidth=0.9)
    _powers_of_ten(axes, "xy")
    axes.set(xlim=(low, high), xlabel="FLOPs per byte moved", ylabel="GFLOP/s")
    _marker_legend(figure)
    return figure


# ---------------------------------------------------------------------------------------------- damage

MANY = 60  # points from which on a line says it better
SPREAD = 30  # of damages from which on their axis is logarithmic
AXES = {"latency": "UNet latency", "macs": "MACs", "params": "parameters"}
# Baselines told apart by hue, marker and name; ours is the line.
RIVALS = {
    "greedy": ("v", "#E69F00"), "a_sdm": ("s", "#009E73"), "bk_sdm_base": ("D", "#CC79A7"),
    "bk_sdm_small": ("P", "#CC79A7"), "bk_sdm_tiny": ("X", "#CC79A7"), "no_attention_at_the_top": ("^", "#56B4E9"),
    "random": (".", "#999999"),
}  # fmt: skip


def damage_at_budgets(report: Report) -> Figure | None:
    """Measured joint damage of our plan and of every baseline within each latency budget."""
    found = report.budgets
    if found is None or not found.rows:
        return None
    figure = _figure(TWO_COLUMNS, 3.0)
    axes = figure.subplots()
    for name, (marker, colour) in RIVALS.items():
        points = [(row.budget, one.damage.value) for row in found.rows for one in row.contestants
                  if one.name.split(" ")[0] == name]  # fmt: skip
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, color=colour, markersize=4, label=name)
    ours = [row.ours.damage for row in found.rows]
    budgets = [row.budget for row in found.rows]
    axes.plot(budgets, [one.value for one in ours], "-o", color=COLOURS["resnet"], markersize=4, label="ours")
    axes.vlines(budgets, [one.low for one in ours], [one.high for one in ours], color=INK, linewidth=0.8)
    _powers_of_ten(axes, "y")
    axes.invert_xaxis()
    axes.set_xlabel("latency budget (share of the teacher’s UNet call)")
    axes.set_ylabel("measured damage (mean square error)")
    figure.legend(loc="outside right center")
    return figure


def _powers_of_ten(axes: Axes, which: str) -> None:
    """Logarithmic axes, `x`, `y` or both, labelled in plain text: the style leaves mathematics as it is written."""
    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def additivity(report: Report) -> Figure | None:
    """Random joint plans: the damage that single edits predict against the measured."""
    found = report.damage.additivity if report.damage else None
    if found is None:
        return None
    figure = _figure(ONE_COLUMN, 2.8)
    axes = figure.subplots()
    for name, marker, colour, label in (
        ("summed", "o", COLOURS["resnet"], "sum"),
        ("with_pairs", "s", COLOURS["transformer"], "with pairs of neighbours"),
    ):
        x = [getattr(plan, name) for plan in found.plans]
        fit = getattr(found, name)
        axes.plot(x, [plan.damage.value for plan in found.plans], marker, color=colour, markersize=3,
                  label=f"{label}: Spearman {fit.spearman.value:.2f}, R² {fit.r2.value:.2f}")  # fmt: skip
    values = [v for plan in found.plans for v in (plan.summed, plan.with_pairs, plan.damage.value) if v > 0]
    axes.plot([min(values), max(values)], [min(values), max(values)], color=QUIET, linewidth=0.7)
    _powers_of_ten(axes, "xy")
    axes.set_xlabel("predicted damage")
    axes.set_ylabel("measured joint damage")
    figure.legend(loc="outside upper left")
    return figure


def frontier(report: Report) -> Figure | None:
    """Every plan that no other beats in both cost and damage, those that were asked for, and the report's own plan."""
    found = report.frontier
    if found is None or not any(point.damage > 0 for point in found.points):
        return None
    figure = _figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    points = sorted((found.cost(point), point.damage) for point in found.points if point.damage > 0)
    axes.step(*zip(*points, strict=True), where="post", color=COLOURS["resnet"], linewidth=0.9)
    if len(points) <= MANY:
        axes.plot(*zip(*points, strict=True), "o", color=COLOURS["resnet"], markersize=2)
    for shown, marker, label in ((found.best, "^", "best in budget"), (found.diverse, "D", "unlike each other")):
        if shown:
            axes.plot([found.cost(p) for p in shown], [p.damage for p in shown], marker, markersize=3.5, label=label)
    own = report.own_point()
    if own and own[1] > 0:
        axes.plot(*own, "s", color=COLOURS["transformer"], markersize=5)
        axes.annotate("this plan", own, (5, 4), textcoords="offset points", size=7)
    if points[-1][1] * SPREAD < points[0][1]:
        _powers_of_ten(axes, "y")
    else:
        axes.set_ylim(0, None)
    axes.set_xlabel(f"{AXES.get(found.by, plain(found.by, 20))}, student / teacher")
    axes.set_ylabel(f"damage ({plain(found.damage_from, 24)})")
    if found.best or found.diverse:
        axes.legend()
    return figure


def damage(report: Report) -> Figure | None:
    """Every edit's measured damage with its interval, least first."""
    if report.damage is None or not report.damage.edits:
        return None
    rows = sorted(report.damage.edits, key=lambda row: row.damage.value)
    figure = _figure(TWO_COLUMNS, 0.7 + 0.13 * len(rows))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        axes.hlines(y, row.damage.low, row.damage.high, color=INK, linewidth=0.9)
        axes.plot(row.damage.value, y, "o", color=COLOURS["resnet"], markersize=3.5)
    if rows[0].damage.value > 0:
        _powers_of_ten(axes, "x")
    axes.set_yticks(range(len(rows)), [plain(" and ".join(map(str, row.edits)), 60) for row in rows], size=6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_xlabel("damage")
    return figure


def quality(report: Report) -> Figure | None:
    """Every quality metric of the students beside the teacher's, whose own noise is shaded."""
    judged = [student for student in _students(report) if student.quality]
    names = list(dict.fromkeys(name for student in judged for name in student.quality))
    if not names:
        return None
    figure = _figure(TWO_COLUMNS, 0.5 + (0.35 + 0.22 * len(judged)) * len(names))
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


# ---------------------------------------------------------------------------------------------- proof

# Who made a student, told apart by hue and marker: ours, BK-SDM's, the paper's, and what an ablation leaves of one.
MAKERS = {
    "ours": ("o", "#0072B2"),
    "bk_sdm": ("D", "#CC79A7"),
    "a_sdm": ("s", "#D55E00"),
    "ablation": ("^", "#999999"),
}


def maker(row: ProofRow) -> str:
    """The key of MAKERS of a proof's row."""
    if row.ablates:
        return "ablation"
    return next((key for key in ("ours", "bk_sdm") if row.name.startswith(key)), "a_sdm")


def quality_at_latency(report: Report) -> Figure | None:
    """Every student's latency against each quality metric, with both 95 % intervals; the teacher's noise is shaded."""
    proof = report.proof
    shown = [row for row in evidence.trained(proof) if row.latency] if proof and proof.rows[0].results else []
    if proof is None or not shown:
        return None
    measures = evidence.judged_measures(proof)
    figure = _figure(TWO_COLUMNS, 2.2 * ((len(measures) + 2) // 2))
    panels = list(figure.subplots((len(measures) + 2) // 2, 2).flat)
    for axes, measure in zip(panels, measures, strict=False):
        _tradeoff(axes, proof, shown, measure)
    for axes in panels[len(measures) :]:
        axes.set_axis_off()
    _row_legend(panels[len(measures)], shown)
    return figure


def _tradeoff(axes: Axes, proof: Proof, shown: Sequence[ProofRow], measure: Measure) -> None:
    teacher, floor = evidence.spread(proof.rows[0], measure.name), evidence.noise_floor(proof, measure.name)
    if teacher:
        lowest = max(teacher.value - floor, measure.lowest)
        axes.axhspan(lowest, teacher.value + floor, color="#DDDDDD", linewidth=0)
        axes.axhline(teacher.value, color=QUIET, linewidth=0.8)
    for number_, row in enumerate(shown, 1):
        found = evidence.spread(row, measure.name)
        if found is None or row.latency is None:
            continue
        marker, colour = MAKERS[maker(row)]
        x, y = row.latency.ratio, found.estimate()
        axes.hlines(y.median, x.low, x.high, color=colour, linewidth=0.8)
        axes.vlines(x.median, y.low, y.high, color=colour, linewidth=0.8)
        axes.plot(x.median, y.median, marker, color=colour, markersize=4)
        axes.annotate(str(number_), (x.median, y.median), (3, 2), textcoords="offset points", size=5.5)
    axes.set_xlabel("UNet latency, student / teacher")
    axes.set_title(f"{measure.title} ({measure.direction})", size=7, loc="left")


def _row_legend(axes: Axes, shown: Sequence[ProofRow]) -> None:
    """Numbers, markers and names in a panel of their own."""
    for number_, row in enumerate(shown, 1):
        marker, colour = MAKERS[maker(row)]
        y = 1 - (number_ - 0.5) / max(len(shown), 8)
        edge = axes.transAxes
        axes.plot(0.03, y, marker, color=colour, markersize=4, transform=edge, clip_on=False)
        axes.text(
            0.08, y, f"{number_}  {plain(row.name, 16)}: {plain(row.what, 44)}", size=5.5, va="center", transform=edge
        )


def components(report: Report) -> Figure | None:
    """What each component bought in each quality metric, with its 95 % interval."""
    found = evidence.components(report.proof) if report.proof and report.proof.rows[0].results else []
    if report.proof is None or not found:
        return None
    measures = evidence.judged_measures(report.proof)
    figure = _figure(TWO_COLUMNS, 0.9 + 0.2 * len(found))
    for axes, measure in zip(figure.subplots(1, len(measures), sharey=True).flat, measures, strict=True):
        axes.axvline(0, color=QUIET, linewidth=0.7)
        for y, one in enumerate(found):
            told = one.bought.get(measure.name)
            if told:
                sure = told.low > 0 or told.high < 0
                axes.hlines(y, told.low, told.high, color=INK, linewidth=0.9)
                axes.plot(told.median, y, "o" if sure else "D", color=COLOURS["resnet" if sure else "glue"],
                          markersize=3.5)  # fmt: skip
        axes.set_title(measure.title, size=7, loc="left")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=3)
    axes = figure.axes[0]
    axes.set_yticks(range(len(found)), [plain(one.row.what, 40) for one in found], size=6)
    axes.set_ylim(len(found) - 0.4, -0.6)
    figure.supxlabel("quality lost without it (right: it helps; circles: beyond the 95 % interval)", size=7)
    return figure


PROOF = (quality_at_latency, components)


# ---------------------------------------------------------------------------------------------- search


def search(report: Report) -> Figure | None:
    """Every student of a search: latency against the quality that ranked them, with both 95 % intervals."""
    found = report.search
    if found is None or not found.students:
        return None
    measure = MEASURES[found.metric]
    marks = [one.quality[found.metric] for one in found.students]
    figure = _figure(ONE_COLUMN, 2.4)
    axes = figure.subplots()
    if marks[0].teacher is not None:
        noise = marks[0].noise_floor or 0.0
        axes.axhspan(max(marks[0].teacher - noise, measure.lowest), marks[0].teacher + noise, color="#DDDDDD")
        axes.axhline(marks[0].teacher, color=QUIET, linewidth=0.8)
    for one, mark in zip(found.students, marks, strict=True):
        colour = COLOURS["resnet" if one.in_front else "glue"]
        axes.hlines(mark.value, one.ratio.low, one.ratio.high, color=colour, linewidth=0.8)
        axes.vlines(one.ratio.median, mark.low, mark.high, color=colour, linewidth=0.8)
        axes.plot(one.ratio.median, mark.value, "o" if one.in_front else "s", color=colour, markersize=4)
        told = f"{one.candidate}, {one.steps} steps"
        axes.annotate(told, (one.ratio.median, mark.value), (3, 2), textcoords="offset points", size=5.5)
    axes.set_xlabel("UNet latency, student / teacher")
    axes.set_title(
        f"{measure.title} ({measure.direction})\ncircles: no other is both faster and better", size=7, loc="left"
    )
    return figure


FIGURES = (
    fig1_costs, fig2_latency_and_parameters, structure, units_share, redundancy, predicted_vs_measured, students,
    validation, rank_transfer, roofline, damage, frontier, damage_at_budgets, additivity, quality,
    *PROOF,
    search,
)  # fmt: skip
