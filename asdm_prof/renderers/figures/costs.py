"""What an image costs, by component and family (Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asdm_prof.renderers import FamilyCost, Report
from asdm_prof.renderers._format import count, count_unit, plain, plural
from asdm_prof.renderers.figures.style import COMPONENTS, TWO_COLUMNS, new_figure

# ---------------------------------------------------------------------------------------------- costs of a family


def fig1_costs(report: Report) -> Figure | None:
    """Parameters and computation per image of text encoder, UNet and VAE (Fig. 1)."""
    if not report.family_costs:
        return None
    families = _by_family(report.family_costs)
    rows = [cost for family in families for cost in (None, *family)]  # None: the line for the family's name
    figure = new_figure(TWO_COLUMNS, 0.45 + 0.17 * len(rows))
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
