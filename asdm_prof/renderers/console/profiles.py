"""A profile: the answer, the tree, what bounds it, the rank, whether to believe it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from asdm.records.measurement import mac_unit
from asdm_prof.analysis.rank import Ranked, rank
from asdm_prof.analysis.tree import Node, shallow_blocks, shallow_params, shallow_share, tree_of
from asdm_prof.records import PartRecord, Peaks, Profile
from asdm_prof.renderers._format import (
    BOUNDS,
    interval,
    number,
    percent,
    plain,
    plural,
    scaled,
    seconds,
    seconds_interval,
)
from asdm_prof.renderers.console.layout import COLOURS, QUIET, Bar, Column, blank_table


def answer(profile: Profile) -> str:
    """What one UNet call takes, and how much of that lies in the two shallow blocks, in one sentence."""
    first, last = shallow_blocks(profile)
    whole = profile.whole.latency_s
    return (
        f"{plain(profile.title)}'s UNet takes {seconds(whole.median)} {seconds_interval(whole)} a call on this machine "
        f"({_runtime(profile)}); {percent(shallow_share(profile).median)} of it is in {plain(first)} and "
        f"{plain(last)}, which hold {percent(shallow_params(profile))} of the "
        "parameters."
    )


def _runtime(profile: Profile) -> str:
    return plain(
        f"{profile.backend}, {profile.device}, {profile.dtype}, {plural(profile.threads, 'thread')}, "
        f"batch {profile.batch}, {profile.size}×{profile.size}"
    )


def made_by(profile: Profile) -> str:
    """The command behind a profile, its time and the first digits of its hash."""
    return f"Made by `{plain(profile.command)}` at {plain(profile.created_utc)}; profile {profile.sha256()[:12]}."


# ---------------------------------------------------------------------------------------------- the tree


def tree_table(profile: Profile, width: int) -> Table:
    """Block → layer → unit in data-flow order, with bars for the share of time; a bar's full cell is the top block."""
    root = tree_of(profile)
    columns = [column for column in _tree_columns(profile) if width >= column.from_width]
    cells = min(24, width - 68) if width >= 76 else 0
    table = blank_table()
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=24)
    if cells:
        table.add_column("time", no_wrap=True, min_width=cells)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    longest = max((node.share for node in root.children), default=0.0) or 1.0
    for depth, node in root.walk():
        bar = [Bar(node.share / longest if depth else 0.0, cells, COLOURS.get(node.kind, ""))] if cells else []
        table.add_row(_node_name(node, depth), *bar, *(column.cell(node) for column in columns))
    return table


def _tree_columns(profile: Profile) -> list[Column[Node]]:
    ranked = {row.fqn: row for row in rank(profile)}
    macs, unit = mac_unit(profile.whole.macs)

    def part(show: Callable[[PartRecord], str]) -> Callable[[Node], str]:
        return lambda node: show(node.parts[0]) if node.level == "part" else ""

    def total(what: str) -> Callable[[Node], str]:
        return lambda node: scaled(sum(getattr(part, what) for part in node.parts), macs)

    return [
        Column("share", 0, lambda node: percent(node.share)),
        Column("ms", 40, lambda node: number(1e3 * node.latency_s)),
        Column("95 %", 100, part(lambda record: interval(record.latency_s, 1e-3)), quiet=True),
        Column(unit, 54, lambda node: scaled(node.macs, macs)),
        Column("conv", 120, total("conv_macs"), quiet=True),
        Column("linear", 120, total("linear_macs"), quiet=True),
        Column("attention", 120, total("attention_macs"), quiet=True),
        Column("M params", 66, lambda node: scaled(node.params, 1e6)),
        Column("MB peak", 136, lambda node: scaled(node.peak_memory_bytes, 1e6)),
        Column("rank", 110, lambda node: str(ranked[node.name].rank) if node.name in ranked else ""),
    ]


def _node_name(node: Node, depth: int) -> Text:
    style = "bold" if node.level in ("unet", "block") else COLOURS.get(node.kind, "")
    return Text("  " * max(depth - 1, 0) + plain(node.label), style=style)


# ---------------------------------------------------------------------------------------------- roofline


def roofline_table(profile: Profile) -> Table:
    """Parts by what bounds them: how many, their share of the time, and how near they come to the roof."""
    table = blank_table()
    table.add_column("bound by", no_wrap=True)
    for title in ("parts", "of time", "of the roof"):
        table.add_column(title, justify="right", no_wrap=True)
    for bound, what in BOUNDS.items():
        parts = [(part, part.roofline) for part in profile.parts if part.roofline and part.roofline.bound == bound]
        if not parts:
            continue
        taken = sum(part.latency_s.median for part, _ in parts)
        roof = sum(max(placed.compute_s, placed.memory_s) for _, placed in parts)
        share = sum(part.share.median for part, _ in parts)
        table.add_row(what, str(len(parts)), percent(share), percent(roof / taken))
    return table


def peaks_line(peaks: Peaks) -> str:
    """What the roof is made of."""
    return (
        f"The roof here: {peaks.gemm_flops_per_s / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{peaks.conv_flops_per_s / 1e9:.0f} in a convolution, {peaks.bytes_per_s / 1e9:.1f} GB/s, "
        f"{peaks.seconds_per_call * 1e6:.1f} µs a call."
    )


# ---------------------------------------------------------------------------------------------- rank


def rank_table(ranked: Sequence[Ranked], width: int) -> Table:
    """Units from most to least redundant; those of one tie group are not told apart."""
    table = blank_table()
    for title in ("rank", "tie"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True, overflow="ellipsis", max_width=16 if width < 100 else 40)
    for title, from_width in (("redundancy", 0), ("95 %", 50), ("of time", 60), ("of params", 70), ("ms", 80)):
        if width >= from_width:
            table.add_column(title, justify="right", no_wrap=True, style=QUIET if title == "95 %" else "")
    for row in ranked:
        name = Text(plain(row.label if width < 100 else row.fqn), style=COLOURS.get(row.kind, ""))
        cells = (
            number(row.redundancy.median),
            interval(row.redundancy),
            percent(row.latency_share.median),
            f"{100 * row.params_share:.2f} %",
            number(1e3 * row.latency_s.median),
        )
        table.add_row(str(row.rank), str(row.tie_group), name, *cells[: len(table.columns) - 3])
    return table


# ---------------------------------------------------------------------------------------------- trust


def trust_table(profile: Profile) -> Table:
    """One line per check: passed or not, what was checked, the figure, and what to do where it failed."""
    table = blank_table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column()
    for line in profile.trust:
        verdict = Text("passed") if line.passed else Text("FAILED", style="bold red")
        remedy = "" if line.passed or not line.remedy else f": {line.remedy}"
        table.add_row(verdict, Text(plain(line.check)), Text(plain(line.value + remedy)))
    return table


def trust_title(profile: Profile) -> str:
    """How many checks were passed, of how many."""
    passed = sum(line.passed for line in profile.trust)
    return f"Can I believe it? {passed} of {plural(len(profile.trust), 'check')} passed."
