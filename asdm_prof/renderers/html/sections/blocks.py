"""Latency and parameters, block by block (the paper's Fig. 2)."""

from __future__ import annotations

from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import percent, plain
from asdm_prof.renderers.html import keys
from asdm_prof.renderers.html.content import Column, Section, Table, picture
from asdm_prof.renderers.html.svg import KINDS, block_bars, block_sums
from asdm_prof.renderers.html.tables import Field, name_cells, number_cells, table

Sums = dict[tuple[str, str], float]  # (block, kind) → the sum over its units


def section(report: Report) -> Section:
    """Time and size of the ResNet and Transformer units of each block."""
    profile = report.profile
    sums = {measure: block_sums(profile, measure) for measure in ("time", "params")}
    labels = {node.name: node.label for _, node in report.tree.walk() if node.level == "block"}
    bars = block_bars(profile, labels)
    figure = picture(bars, "Latency and parameters of each block", _caption(profile, sums), keys.kinds(glue=False))
    return Section("Latency and parameters, block by block", [figure, _table(profile, sums)])


def _caption(profile: Profile, sums: dict[str, Sums]) -> str:
    """The block with the most time for its size, and the one with the least."""
    blocks = profile.topology.blocks
    shares = {}
    for measure, values in sums.items():
        whole = sum(values.values())
        shares[measure] = {b: sum(v for (block, _), v in values.items() if block == b) / whole for b in blocks}
    gap = {block: shares["time"][block] - shares["params"][block] for block in blocks}
    slow, big = max(gap, key=lambda b: gap[b]), min(gap, key=lambda b: gap[b])
    return plain(
        f"Bars up show time, bars down parameters. Of the sums over all units, {slow} has "
        f"{percent(shares['time'][slow])} of the time and {percent(shares['params'][slow])} of the parameters, {big} "
        f"{percent(shares['time'][big])} and {percent(shares['params'][big])}.",
        400,
    )


def _table(profile: Profile, sums: dict[str, Sums]) -> Table:
    """Milliseconds and millions of parameters of each block's ResNet and Transformer units."""
    blocks = profile.topology.blocks
    fields: list[Field] = [(Column("block", numeric=False), name_cells(blocks))]
    for measure, what, unit in (("time", "latency", "ms"), ("params", "parameters", "M")):
        for kind in ("resnet", "transformer"):
            cells = number_cells([sums[measure].get((block, kind)) for block in blocks])
            fields.append((Column(f"{KINDS[kind]} {what}", unit), cells))
    return table("blocks", "The same as a table.", fields, summary="Blocks as a table")
