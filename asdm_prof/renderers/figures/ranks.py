"""Units by redundancy, and whether their order holds elsewhere."""

from __future__ import annotations

from itertools import groupby

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from asdm_prof.analysis.rank import rank
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers.figures.style import (
    COLOURS,
    INK,
    MARKERS,
    ONE_COLUMN,
    QUIET,
    bracket,
    marker_legend,
    new_figure,
)

# ---------------------------------------------------------------------------------------------- redundancy


def redundancy(report: Report) -> Figure | None:
    """Units by rank: share of the time over share of the parameters, with intervals and tie groups."""
    ranked = rank(report.profile)
    if not ranked:
        return None
    figure = new_figure(ONE_COLUMN, 0.8 + 0.125 * len(ranked))
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
        bracket(axes, [row.rank for row in members], group)
    axes.text(1.02, 0.2, "tie\ngroup", size=6, va="bottom", color=QUIET, transform=axes.get_yaxis_transform())
    marker_legend(figure)
    return figure


def rank_transfer(report: Report) -> Figure | None:
    """Rank correlation of the units between runtimes and settings, as a table of numbers in shades."""
    comparison = report.comparison
    if comparison is None:
        return None
    names = [plain(profile.name, 28) for profile in comparison.profiles]
    side = 1.2 + 0.42 * len(names)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    least = min(min(row) for row in comparison.spearman)
    axes.imshow(comparison.spearman, cmap="Blues", vmin=min(least, 0.9) - 0.05, vmax=1.1)
    for y, row in enumerate(comparison.spearman):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", size=6.5, color=INK)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Spearman of the units’ ranks", size=7, loc="left")
    return figure
