"""What to prune: units by redundancy, what edits do to the output alone and together, and the frontier of plans."""

from __future__ import annotations

from itertools import groupby

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers.figures import style

MANY = 60  # points from which on a line says it better
SPREAD = 30  # of damages from which on their axis is logarithmic
AXES = {"latency": "UNet latency", "macs": "MACs", "params": "parameters"}


def redundancy(report: Report) -> Figure | None:
    """Units by rank: share of the time over share of the parameters, with intervals and tie groups."""
    ranked = report.ranked
    if not ranked:
        return None
    figure, axes = style.one_panel(style.ONE_COLUMN, 0.8 + 0.125 * len(ranked))
    for row in ranked:
        axes.plot(row.redundancy.median, row.rank, style.MARKERS[row.kind], color=style.COLOURS[row.kind], markersize=4)
        axes.hlines(row.rank, row.redundancy.low, row.redundancy.high, color=style.INK, linewidth=0.9, zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", length=0)
    axes.axvline(1, color=style.QUIET, linewidth=0.6, linestyle=":")
    axes.set_xlabel("redundancy = share of time ÷ share of parameters")
    axes.set_yticks([row.rank for row in ranked], [plain(row.label, 20) for row in ranked], size=6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(ranked) + 0.8, 0.2)
    for group, members in groupby(ranked, key=lambda row: row.tie_group):
        style.bracket(axes, [row.rank for row in members], group)
    axes.text(1.02, 0.2, "tie\ngroup", size=6, va="bottom", color=style.QUIET, transform=axes.get_yaxis_transform())
    style.marker_legend(figure)
    return figure


def rank_transfer(report: Report) -> Figure | None:
    """Rank correlation of the units between runtimes and settings, as a table of numbers in shades."""
    comparison = report.comparison
    if comparison is None:
        return None
    names = [plain(profile.name, 28) for profile in comparison.profiles]
    side = 1.2 + 0.42 * len(names)
    figure, axes = style.one_panel(side + 0.8, side)
    least = min(min(row) for row in comparison.spearman)
    axes.imshow(comparison.spearman, cmap="Blues", vmin=min(least, 0.9) - 0.05, vmax=1.1)
    for y, row in enumerate(comparison.spearman):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", size=6.5, color=style.INK)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Spearman of the units’ ranks", size=7, loc="left")
    return figure


def additivity(report: Report) -> Figure | None:
    """Random joint plans: the damage that single edits predict against the measured."""
    fits = report.damage.additivity if report.damage else None
    if fits is None:
        return None
    figure, axes = style.one_panel(style.ONE_COLUMN, 2.8)
    for name, marker, colour, label in (
        ("summed", "o", style.COLOURS["resnet"], "sum"),
        ("with_pairs", "s", style.COLOURS["transformer"], "with pairs of neighbours"),
    ):
        x = [getattr(plan, name) for plan in fits.plans]
        fit = getattr(fits, name)
        axes.plot(x, [plan.damage.value for plan in fits.plans], marker, color=colour, markersize=3,
                  label=f"{label}: Spearman {fit.spearman.value:.2f}, R² {fit.r2.value:.2f}")  # fmt: skip
    values = [v for plan in fits.plans for v in (plan.summed, plan.with_pairs, plan.damage.value) if v > 0]
    axes.plot([min(values), max(values)], [min(values), max(values)], color=style.QUIET, linewidth=0.7)
    style.powers_of_ten(axes, "xy")
    axes.set(xlabel="predicted damage", ylabel="measured joint damage")
    figure.legend(loc="outside upper left")
    return figure


def frontier(report: Report) -> Figure | None:
    """Every plan that no other beats in both cost and damage, those that were asked for, and the report's own plan."""
    plans = report.frontier
    if plans is None or not any(point.damage > 0 for point in plans.points):
        return None
    figure, axes = style.one_panel(style.ONE_COLUMN, 2.6)
    points = sorted((plans.cost(point), point.damage) for point in plans.points if point.damage > 0)
    axes.step(*zip(*points, strict=True), where="post", color=style.COLOURS["resnet"], linewidth=0.9)
    if len(points) <= MANY:
        axes.plot(*zip(*points, strict=True), "o", color=style.COLOURS["resnet"], markersize=2)
    for shown, marker, label in ((plans.best, "^", "best in budget"), (plans.diverse, "D", "unlike each other")):
        if shown:
            axes.plot([plans.cost(p) for p in shown], [p.damage for p in shown], marker, markersize=3.5, label=label)
    own = report.own_point()
    if own and own[1] > 0:
        axes.plot(*own, "s", color=style.COLOURS["transformer"], markersize=5)
        axes.annotate("this plan", own, (5, 4), textcoords="offset points", size=7)
    if points[-1][1] * SPREAD < points[0][1]:
        style.powers_of_ten(axes, "y")
    else:
        axes.set_ylim(0, None)
    across = AXES.get(plans.by, plain(plans.by, 20))
    axes.set(xlabel=f"{across}, student / teacher", ylabel=f"damage ({plain(plans.damage_from, 24)})")
    if plans.best or plans.diverse:
        axes.legend()
    return figure


def damage(report: Report) -> Figure | None:
    """Every edit's measured damage with its interval, least first."""
    if report.damage is None or not report.damage.edits:
        return None
    rows = sorted(report.damage.edits, key=lambda row: row.damage.value)
    figure, axes = style.one_panel(style.TWO_COLUMNS, 0.7 + 0.13 * len(rows))
    for y, row in enumerate(rows):
        axes.hlines(y, row.damage.low, row.damage.high, color=style.INK, linewidth=0.9)
        axes.plot(row.damage.value, y, "o", color=style.COLOURS["resnet"], markersize=3.5)
    if rows[0].damage.value > 0:
        style.powers_of_ten(axes, "x")
    style.row_names(axes, [plain(" and ".join(map(str, row.edits)), 60) for row in rows], 0.7, size=6)
    axes.set_xlabel("damage")
    return figure
