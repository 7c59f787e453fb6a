"""The UNet within the whole model: text encoder, UNet and VAE of each family (the paper's Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence

from asdm_prof.renderers import FamilyCost, Report
from asdm_prof.renderers._format import percent, plain
from asdm_prof.renderers.html.content import Column, Section, Table, code, missing, picture
from asdm_prof.renderers.html.svg import by_family, component_name, family_bars
from asdm_prof.renderers.html.tables import name_cells, number_cells, table


def section(report: Report) -> Section:
    """Parameters and computation per image of each component."""
    title, costs = "The UNet within the whole model", report.family_costs
    if not costs:
        command = code(f"asdm-prof flops {plain(report.profile.family)}")
        lead = "Text encoder, UNet and VAE were not compared for this report. "
        return Section(title, [missing(lead, command, " counts a family.")])
    bars = picture(family_bars(costs), "Parameters and computation of each component", _caption(costs))
    return Section(title, [bars, _table(costs)])


def _caption(costs: Sequence[FamilyCost]) -> str:
    """The UNet's share of a whole model."""
    sizes, macs = [], []
    for rows in by_family(costs):
        unet = [cost for cost in rows if cost.component == "unet"]
        sizes.append(sum(c.params for c in unet) / sum(c.params for c in rows))
        macs.append(sum(c.macs * c.calls for c in unet) / sum(c.macs * c.calls for c in rows))
    return f"The UNet holds {_span(sizes)} of the parameters and does {_span(macs)} of the multiply-adds of an image."


def _span(shares: Sequence[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def _table(costs: Sequence[FamilyCost]) -> Table:
    fields = [
        (Column("family", numeric=False), name_cells(cost.title for cost in costs)),
        (Column("component", numeric=False), name_cells(component_name(cost.component) for cost in costs)),
        (Column("parameters", "M"), number_cells([cost.params / 1e6 for cost in costs], 0)),
        (Column("one call", "GMAC"), number_cells([cost.macs / 1e9 for cost in costs], 1)),
        (Column("calls per image"), number_cells([cost.calls for cost in costs], 0)),
        (Column("an image", "GMAC"), number_cells([cost.macs * cost.calls / 1e9 for cost in costs], 0)),
    ]
    return table("costs", "The same as a table.", fields, summary="Components as a table")
