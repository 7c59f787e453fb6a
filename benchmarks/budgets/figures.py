"""Our plan and every baseline within each latency budget, for a paper."""

from __future__ import annotations

from matplotlib.figure import Figure

from asdm_prof.renderers import Report
from asdm_prof.renderers.figures.style import COLOURS, INK, TWO_COLUMNS, one_panel, powers_of_ten
from benchmarks.budgets.records import Budgets

# Baselines told apart by hue, marker and name; ours is the line.
RIVALS = {
    "greedy": ("v", "#E69F00"), "a_sdm": ("s", "#009E73"), "bk_sdm_base": ("D", "#CC79A7"),
    "bk_sdm_small": ("P", "#CC79A7"), "bk_sdm_tiny": ("X", "#CC79A7"), "no_attention_at_the_top": ("^", "#56B4E9"),
    "random": (".", "#999999"),
}  # fmt: skip


def damage_at_budgets(report: Report) -> Figure | None:
    """Measured joint damage of our plan and of every baseline within each latency budget."""
    budgets: Budgets | None = report.extra.get("budgets")
    if budgets is None or not budgets.rows:
        return None
    figure, axes = one_panel(TWO_COLUMNS, 3.0)
    for name, (marker, colour) in RIVALS.items():
        points = [(row.budget, one.damage.value) for row in budgets.rows for one in row.contestants
                  if one.name.split(" ")[0] == name]  # fmt: skip
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, color=colour, markersize=4, label=name)
    ours = [row.ours.damage for row in budgets.rows]
    ratios = [row.budget for row in budgets.rows]
    axes.plot(ratios, [one.value for one in ours], "-o", color=COLOURS["resnet"], markersize=4, label="ours")
    axes.vlines(ratios, [one.low for one in ours], [one.high for one in ours], color=INK, linewidth=0.8)
    powers_of_ten(axes, "y")
    axes.invert_xaxis()
    axes.set(xlabel="latency budget (share of the teacher’s UNet call)", ylabel="measured damage (mean square error)")
    figure.legend(loc="outside right center")
    return figure
