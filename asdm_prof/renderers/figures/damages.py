"""What edits do to the output, alone and together, and the frontier of plans."""

from __future__ import annotations

from matplotlib.figure import Figure

from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers.figures.style import COLOURS, INK, ONE_COLUMN, QUIET, TWO_COLUMNS, new_figure, powers_of_ten

# ---------------------------------------------------------------------------------------------- damage

MANY = 60  # points from which on a line says it better
SPREAD = 30  # of damages from which on their axis is logarithmic
AXES = {"latency": "UNet latency", "macs": "MACs", "params": "parameters"}


def additivity(report: Report) -> Figure | None:
    """Random joint plans: the damage that single edits predict against the measured."""
    fits = report.damage.additivity if report.damage else None
    if fits is None:
        return None
    figure = new_figure(ONE_COLUMN, 2.8)
    axes = figure.subplots()
    for name, marker, colour, label in (
        ("summed", "o", COLOURS["resnet"], "sum"),
        ("with_pairs", "s", COLOURS["transformer"], "with pairs of neighbours"),
    ):
        x = [getattr(plan, name) for plan in fits.plans]
        fit = getattr(fits, name)
        axes.plot(x, [plan.damage.value for plan in fits.plans], marker, color=colour, markersize=3,
                  label=f"{label}: Spearman {fit.spearman.value:.2f}, R² {fit.r2.value:.2f}")  # fmt: skip
    values = [v for plan in fits.plans for v in (plan.summed, plan.with_pairs, plan.damage.value) if v > 0]
    axes.plot([min(values), max(values)], [min(values), max(values)], color=QUIET, linewidth=0.7)
    powers_of_ten(axes, "xy")
    axes.set_xlabel("predicted damage")
    axes.set_ylabel("measured joint damage")
    figure.legend(loc="outside upper left")
    return figure


def frontier(report: Report) -> Figure | None:
    """Every plan that no other beats in both cost and damage, those that were asked for, and the report's own plan."""
    plans = report.frontier
    if plans is None or not any(point.damage > 0 for point in plans.points):
        return None
    figure = new_figure(ONE_COLUMN, 2.6)
    axes = figure.subplots()
    points = sorted((plans.cost(point), point.damage) for point in plans.points if point.damage > 0)
    axes.step(*zip(*points, strict=True), where="post", color=COLOURS["resnet"], linewidth=0.9)
    if len(points) <= MANY:
        axes.plot(*zip(*points, strict=True), "o", color=COLOURS["resnet"], markersize=2)
    for shown, marker, label in ((plans.best, "^", "best in budget"), (plans.diverse, "D", "unlike each other")):
        if shown:
            axes.plot([plans.cost(p) for p in shown], [p.damage for p in shown], marker, markersize=3.5, label=label)
    own = report.own_point()
    if own and own[1] > 0:
        axes.plot(*own, "s", color=COLOURS["transformer"], markersize=5)
        axes.annotate("this plan", own, (5, 4), textcoords="offset points", size=7)
    if points[-1][1] * SPREAD < points[0][1]:
        powers_of_ten(axes, "y")
    else:
        axes.set_ylim(0, None)
    axes.set_xlabel(f"{AXES.get(plans.by, plain(plans.by, 20))}, student / teacher")
    axes.set_ylabel(f"damage ({plain(plans.damage_from, 24)})")
    if plans.best or plans.diverse:
        axes.legend()
    return figure


def damage(report: Report) -> Figure | None:
    """Every edit's measured damage with its interval, least first."""
    if report.damage is None or not report.damage.edits:
        return None
    rows = sorted(report.damage.edits, key=lambda row: row.damage.value)
    figure = new_figure(TWO_COLUMNS, 0.7 + 0.13 * len(rows))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        axes.hlines(y, row.damage.low, row.damage.high, color=INK, linewidth=0.9)
        axes.plot(row.damage.value, y, "o", color=COLOURS["resnet"], markersize=3.5)
    if rows[0].damage.value > 0:
        powers_of_ten(axes, "x")
    axes.set_yticks(range(len(rows)), [plain(" and ".join(map(str, row.edits)), 60) for row in rows], size=6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_xlabel("damage")
    return figure
