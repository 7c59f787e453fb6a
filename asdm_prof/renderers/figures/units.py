"""Where one UNet call spends its time: blocks, units and what bounds them (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asdm.measure.statistics import estimate
from asdm.records.measurement import Estimate
from asdm_prof.analysis import structure as resemblance
from asdm_prof.records import PartRecord, Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, second_unit
from asdm_prof.renderers.figures.style import (
    COLOURS,
    HATCHES,
    INK,
    MARKERS,
    ONE_COLUMN,
    QUIET,
    TWO_COLUMNS,
    kind_legend,
    marker_legend,
    new_figure,
    powers_of_ten,
)

# ---------------------------------------------------------------------------------------------- beside another model


def structure(report: Report) -> Figure | None:
    """What part of time and of parameters each block takes, here and in another model of the same blocks."""
    profile, other = report.profile, report.beside
    if other is None:
        return None
    rows = resemblance.rows(profile, other)[:-1]
    figure = new_figure(TWO_COLUMNS, 3.2)
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
    figure = new_figure(TWO_COLUMNS, 3.2)
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
    kind_legend(figure, ("transformer", "resnet"))
    return figure


def units_share(report: Report) -> Figure | None:
    """Share of the UNet's time of every unit and piece of glue, in the order in which data flows."""
    parts = report.profile.parts
    if not parts:
        return None
    figure = new_figure(TWO_COLUMNS, 2.5)
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
    kind_legend(figure, ("transformer", "resnet", "glue"))
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


# ---------------------------------------------------------------------------------------------- roofline


def roofline(report: Report) -> Figure | None:
    """Every part's FLOPs per second over its FLOPs per byte, under what the machine reaches through this runtime."""
    profile, peaks = report.profile, report.profile.peaks
    parts = [part for part in profile.parts if part.macs and part.moved_bytes]
    if peaks is None or not parts:
        return None
    figure = new_figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    intensity = [2 * part.macs / part.moved_bytes for part in parts]
    for part, x in zip(parts, intensity, strict=True):
        marker, colour = MARKERS.get(part.kind, "^"), COLOURS[part.kind]
        axes.plot(x, 2e-9 * part.macs / part.latency_s.median, marker, color=colour, markersize=3.5)
    low, high = min(intensity) / 1.5, max(*intensity, peaks.flops_per_s / peaks.bytes_per_s) * 1.5
    grid = [low * (high / low) ** (i / 100) for i in range(101)]
    roof = [min(x * peaks.bytes_per_s, peaks.flops_per_s) / 1e9 for x in grid]
    axes.plot(grid, roof, color=INK, linewidth=0.9)
    powers_of_ten(axes, "xy")
    axes.set(xlim=(low, high), xlabel="FLOPs per byte moved", ylabel="GFLOP/s")
    marker_legend(figure)
    return figure
