"""Two pictures of the paper: parameters and computation of the whole model (Fig. 1), and the UNet's blocks (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence

from asdm_prof.records import Profile
from asdm_prof.renderers import FamilyCost, Report
from asdm_prof.renderers._format import percent, plain, quoted
from asdm_prof.renderers.html import keys
from asdm_prof.renderers.html.content import Column, Section, Table, missing, picture
from asdm_prof.renderers.html.svg import KINDS, block_bars, block_sums, by_family, component_name, family_bars
from asdm_prof.renderers.html.tables import Field, name_cells, number_cells, table

Sums = dict[tuple[str, str], float]  # (block, kind) → the sum over its units


def blocks(report: Report) -> Section:
    """Time and size of the ResNet and Transformer units of each block."""
    profile = report.profile
    sums = {measure: block_sums(profile, measure) for measure in ("time", "params")}
    labels = {node.name: node.label for _, node in report.tree.walk() if node.level == "block"}
    bars = block_bars(profile, labels)
    figure = picture(
        bars, "Latency and parameters of each block", _blocks_caption(profile, sums), keys.kinds(glue=False)
    )
    return Section("Latency and parameters, block by block", [figure, _blocks_table(profile, sums)])


def _blocks_caption(profile: Profile, sums: dict[str, Sums]) -> str:
    """The block with the most time for its size, and the one with the least."""
    names = profile.topology.blocks
    shares = {}
    for measure, values in sums.items():
        whole = sum(values.values())
        shares[measure] = {b: sum(v for (block, _), v in values.items() if block == b) / whole for b in names}
    gap = {block: shares["time"][block] - shares["params"][block] for block in names}
    slow, big = max(gap, key=lambda b: gap[b]), min(gap, key=lambda b: gap[b])
    return plain(
        f"Bars up show time, bars down parameters. Of the sums over all units, {slow} has "
        f"{percent(shares['time'][slow])} of the time and {percent(shares['params'][slow])} of the parameters, {big} "
        f"{percent(shares['time'][big])} and {percent(shares['params'][big])}.",
        400,
    )


def _blocks_table(profile: Profile, sums: dict[str, Sums]) -> Table:
    """Milliseconds and millions of parameters of each block's ResNet and Transformer units."""
    names = profile.topology.blocks
    fields: list[Field] = [(Column("block", numeric=False), name_cells(names))]
    for measure, what, unit in (("time", "latency", "ms"), ("params", "parameters", "M")):
        for kind in ("resnet", "transformer"):
            cells = number_cells([sums[measure].get((block, kind)) for block in names])
            fields.append((Column(f"{KINDS[kind]} {what}", unit), cells))
    return table("blocks", "The same as a table.", fields, summary="Blocks as a table")


def families(report: Report) -> Section:
    """Parameters and computation per image of each component."""
    title, costs = "The UNet within the whole model", report.family_costs
    if not costs:
        lead = "Text encoder, UNet and VAE were not compared for this report. "
        return Section(title, [missing(lead, f"asdm-prof flops {quoted(report.profile.family)}", " counts a family.")])
    bars = picture(family_bars(costs), "Parameters and computation of each component", _families_caption(costs))
    return Section(title, [bars, _families_table(costs)])


def _families_caption(costs: Sequence[FamilyCost]) -> str:
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


def _families_table(costs: Sequence[FamilyCost]) -> Table:
    fields = [
        (Column("family", numeric=False), name_cells(cost.title for cost in costs)),
        (Column("component", numeric=False), name_cells(component_name(cost.component) for cost in costs)),
        (Column("parameters", "M"), number_cells([cost.params / 1e6 for cost in costs], 0)),
        (Column("one call", "GMAC"), number_cells([cost.macs / 1e9 for cost in costs], 1)),
        (Column("calls per image"), number_cells([cost.calls for cost in costs], 0)),
        (Column("an image", "GMAC"), number_cells([cost.macs * cost.calls / 1e9 for cost in costs], 0)),
    ]
    return table("costs", "The same as a table.", fields, summary="Components as a table")
