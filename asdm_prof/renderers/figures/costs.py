"""What an image and one UNet call cost: components (Fig. 1), blocks (Fig. 2), units, and what bounds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asdm.measure.statistics import estimate
from asdm.records.measurement import Estimate
from asdm_prof.analysis import structure as resemblance
from asdm_prof.records import PartRecord, Profile
from asdm_prof.renderers import FamilyCost, Report
from asdm_prof.renderers._format import count, count_unit, plain, plural, second_unit
from asdm_prof.renderers.figures import style


def fig1_costs(report: Report) -> Figure | None:
    """Parameters and computation per image of text encoder, UNet and VAE (Fig. 1)."""
    if not report.family_costs:
        return None
    families = _by_family(report.family_costs)
    rows = [cost for family in families for cost in (None, *family)]  # None: the line for the family's name
    figure = style.new_figure(style.TWO_COLUMNS, 0.45 + 0.17 * len(rows))
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
    name = style.COMPONENTS.get(cost.component, plain(cost.component, 20).replace("_", " "))
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


def structure(report: Report) -> Figure | None:
    """What part of time and of parameters each block takes, here and in another model of the same blocks."""
    profile, other = report.profile, report.beside
    if other is None:
        return None
    rows = resemblance.rows(profile, other)[:-1]
    figure = style.new_figure(style.TWO_COLUMNS, 3.2)
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
    _block_names(top, bottom, profile, [row.name for row in rows])
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def fig2_latency_and_parameters(report: Report) -> Figure | None:
    """Latency and parameters of Transformer and ResNet units, block by block (Fig. 2)."""
    profile = report.profile
    if not profile.units:
        return None
    figure = style.new_figure(style.TWO_COLUMNS, 3.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    blocks = [block for block in profile.topology.blocks if any(unit.block == block for unit in profile.units)]
    longest = max(_time(profile, block, kind).median for block in blocks for kind in style.MARKERS)
    scale, unit_name = second_unit(longest)
    for kind, shift in (("transformer", -0.2), ("resnet", 0.2)):
        places = [x + shift for x in range(len(blocks))]
        times = [_time(profile, block, kind).scaled(1 / scale) for block in blocks]
        params = [sum(unit.params for unit in _members(profile, block, kind)) for block in blocks]
        _kind_bars(top, places, [time.median for time in times], [kind] * len(blocks), width=0.38)
        _whiskers(top, places, times)
        _kind_bars(bottom, places, [n / 1e6 for n in params], [kind] * len(blocks), width=0.38)
    top.set_ylabel(f"latency ({unit_name})")
    bottom.set_ylabel("parameters (M)")
    _block_names(top, bottom, profile, blocks)
    style.kind_legend(figure, ("transformer", "resnet"))
    return figure


def units_share(report: Report) -> Figure | None:
    """Share of the UNet's time of every unit and piece of glue, in the order in which data flows."""
    parts = report.profile.parts
    if not parts:
        return None
    figure, axes = style.one_panel(style.TWO_COLUMNS, 2.5)
    places = list(range(len(parts)))
    shares = [part.share.scaled(100) for part in parts]
    _kind_bars(axes, places, [share.median for share in shares], [part.kind for part in parts], width=0.8)
    _whiskers(axes, places, shares)
    axes.set_xticks(places, [plain(part.label.rpartition(".")[2], 16) for part in parts], rotation=90, size=6)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.7, len(parts) - 0.3)
    axes.set_ylabel("share of time (%)")
    _block_braces(axes, report.profile, parts)
    style.kind_legend(figure, ("transformer", "resnet", "glue"))
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


def _block_names(top: Axes, bottom: Axes, profile: Profile, blocks: Sequence[str]) -> None:
    bottom.set_xticks(range(len(blocks)), [_block_label(profile, block) for block in blocks])
    for axes in (top, bottom):
        axes.tick_params(axis="x", length=0)


def _kind_bars(axes: Axes, places: Sequence[float], values: list[float], kinds: list[str], width: float) -> None:
    colours, hatches = [style.COLOURS[kind] for kind in kinds], [style.HATCHES[kind] for kind in kinds]
    axes.bar(places, values, width, color=colours, hatch=hatches, edgecolor="white")


def _whiskers(axes: Axes, places: Sequence[float], estimates: list[Estimate]) -> None:
    axes.vlines(places, [e.low for e in estimates], [e.high for e in estimates], color=style.INK, linewidth=0.8)


def _block_braces(axes: Axes, profile: Profile, parts: Sequence[PartRecord]) -> None:
    """A line and the block's name above the bars of each block."""
    roof = 1.06 * max(part.share.high for part in parts) * 100
    axes.set_ylim(0, 1.14 * roof)
    for block, members in groupby(enumerate(parts), key=lambda item: item[1].block):
        places = [x for x, _ in members]
        if block and any(unit.block == block for unit in profile.units):
            axes.hlines(roof, places[0] - 0.4, places[-1] + 0.4, color=style.QUIET, linewidth=0.8)
            axes.text((places[0] + places[-1]) / 2, 1.02 * roof, _block_label(profile, block), ha="center", size=7)


def roofline(report: Report) -> Figure | None:
    """Every part's FLOPs per second over its FLOPs per byte, under what the machine reaches through this runtime."""
    profile, peaks = report.profile, report.profile.peaks
    parts = [p for p in profile.parts if p.macs and p.moved_bytes and p.latency_s.median > 0]
    if peaks is None or not parts:
        return None
    figure, axes = style.one_panel(style.ONE_COLUMN, 2.6)
    intensity = [2 * part.macs / part.moved_bytes for part in parts]
    for part, x in zip(parts, intensity, strict=True):
        marker, colour = style.MARKERS.get(part.kind, "^"), style.COLOURS[part.kind]
        axes.plot(x, 2e-9 * part.macs / part.latency_s.median, marker, color=colour, markersize=3.5)
    low, high = min(intensity) / 1.5, max(*intensity, peaks.flops_per_s / peaks.bytes_per_s) * 1.5
    grid = [low * (high / low) ** (i / 100) for i in range(101)]
    roof = [min(x * peaks.bytes_per_s, peaks.flops_per_s) / 1e9 for x in grid]
    axes.plot(grid, roof, color=style.INK, linewidth=0.9)
    style.powers_of_ten(axes, "xy")
    axes.set(xlim=(low, high), xlabel="FLOPs per byte moved", ylabel="GFLOP/s")
    style.marker_legend(figure)
    return figure
