"""The icicle, the U, and every part as a table: where the time of one call goes."""

from __future__ import annotations

from operator import attrgetter

from markupsafe import Markup

from asdm.records.measurement import mac_unit
from asdm_prof.analysis.tree import Node
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import interval, number, percent, plain, scaled
from asdm_prof.renderers.html import keys
from asdm_prof.renderers.html.content import Cell, Column, Figure, Picture, Section, Table
from asdm_prof.renderers.html.parts import share_of
from asdm_prof.renderers.html.svg import KINDS, tag
from asdm_prof.renderers.html.tables import number_cells, shortened, table
from asdm_prof.renderers.html.unet_svg import icicle, u_picture

HINT = (
    "Point at a part to see its figures here. Click or Enter pins it, Escape lets it go; the arrow keys walk from part "
    "to part."
)
CARD = tag(
    "aside",
    tag("p", HINT, class_="hint"),
    id="card",
    aria_live="polite",
    aria_label="The part under the pointer",
    hidden="",
)


def section(report: Report) -> Section:
    """The whole, its blocks, layers and parts, in the order in which data flows."""
    profile = report.profile
    title = f"The {plain(profile.title)} UNet as a U; the area of a square is its time"
    key = keys.kinds()
    if any(part.roofline for part in profile.parts):
        key += keys.texts("strip at the foot: the deeper, the nearer to the roofline")
    whole = [Picture(icicle(report), "Icicle of the UNet")]
    u = [Picture(u_picture("u-picture", title, report), "The UNet as a U")]
    figures = [
        Figure(whole, _icicle_captions(report.tree), key, tools=_measure_switch()),
        Figure(u, [_u_caption(profile)], aside=CARD),
    ]
    return Section("", [*figures, tree_table(report)])


def _measure_switch() -> Markup:
    choices = Markup("").join(
        Markup('<label><input type="radio" name="measure" value="{}"{}>{}</label>').format(
            i, Markup("" if i else " checked"), name
        )
        for i, name in enumerate(("time", "MACs", "parameters", "memory"))
    )
    legend = tag("legend", "Width shows", class_="unseen")
    return tag("fieldset", legend, choices, id="measure", hidden="")


def _icicle_captions(root: Node) -> list[str]:
    """One sentence for each measure of the switch, in its order: time, MACs, parameters, memory."""
    blocks = [child for child in root.children if child.level == "block"]
    captions = []
    for what, measure in (("time", "latency_s"), ("MACs", "macs"), ("parameters", "params")):
        value = attrgetter(measure)
        widest = max(blocks, key=value)
        kinds = {KINDS[kind]: Node("", "", "", parts=[p for p in root.parts if p.kind == kind]) for kind in KINDS}
        shares = ", ".join(f"{name} {share_of(value(node), value(root))}" for name, node in kinds.items())
        share = share_of(value(widest), value(root))
        captions.append(f"Width is {what}. The widest block is {widest.name} with {share}; by kind: {shares}.")
    peak = max(root.parts, key=lambda part: part.peak_memory_bytes)
    size = f"{number(peak.peak_memory_bytes / 1e6)} MB"
    captions.append(f"Width is each part’s own peak of activations; peaks do not add up. Highest: {peak.fqn}, {size}.")
    return [plain(caption, 400) for caption in captions]


def _u_caption(profile: Profile) -> str:
    """The largest square against the smallest."""
    units = sorted(profile.units, key=lambda unit: -unit.latency_s.median)
    first, last = units[0], units[-1]
    times = first.latency_s.median / last.latency_s.median
    top = f"{first.fqn} is the largest unit with {percent(first.share.median)}, {number(times, 2)} times {last.fqn}"
    return plain(f"The area of a square is its time; a line across is a skip connection. {top}.", 400)


def tree_table(report: Report) -> Table:
    """Whole, blocks, layers and parts with all four measures: the icicle as text."""
    walked = list(report.tree.walk())
    nodes = [node for _, node in walked]
    longest = max((node.share for node in report.tree.children), default=0.0) or 1.0
    macs, macs_unit = mac_unit(report.tree.macs)
    ranks = {row.fqn: str(row.rank) for row in report.ranked}

    def sums(what: str) -> list[Cell]:
        return [Cell(scaled(sum(getattr(part, what) for part in node.parts), macs)) for node in nodes]

    def sizes(what: str, unit: float) -> list[Cell]:
        values = [getattr(node, what) for node in nodes]
        return shortened(number_cells([v / unit for v in values], 2), [scaled(v, unit) for v in values])

    shares = shortened(number_cells([100 * n.share for n in nodes], 2), [percent(n.share) for n in nodes])
    least = min((n.latency_s for n in nodes if n.latency_s > 0), default=1.0)
    figures = [1e3 * n.latency_s for n in nodes]
    times = shortened(number_cells(figures, 1 if least > 5e-4 else 3), [number(value) for value in figures])
    intervals = [interval(n.parts[0].latency_s, 1e-3) if n.level == "part" else "" for n in nodes]
    peaks = number_cells([n.peak_memory_bytes / 1e6 for n in nodes], 0)
    operators = [
        (Column(name, macs_unit, terminal_from=120, short=name, on_page=False), sums(f"{name}_macs"))
        for name in ("conv", "linear", "attention")
    ]
    fields = [
        (Column("part", numeric=False, terminal_from=0, short=""), [_name(node, depth) for depth, node in walked]),
        (Column("share", "%", terminal_from=0, short="share"), shares),
        (Column("latency", "ms", terminal_from=40, short="ms"), times),
        (Column("95 %", terminal_from=100, on_page=False), [Cell(text) for text in intervals]),
        (Column("computation", macs_unit, terminal_from=54, short=macs_unit), sizes("macs", macs)),
        *operators,
        (Column("parameters", "M", terminal_from=66, short="M params"), sizes("params", 1e6)),
        (Column("peak memory", "MB", terminal_from=136, short="MB peak"), peaks),
        (Column("rank", terminal_from=110, on_page=False), [Cell(ranks.get(node.name, "")) for node in nodes]),
    ]
    bars = [node.share / longest if depth else 0.0 for depth, node in walked]
    caption = "The same as a table, in data-flow order."
    return table("tree", caption, fields, summary="All parts as a table", bars=bars)


def _name(node: Node, depth: int) -> Cell:
    kind = "group" if node.level in ("unet", "block") else node.kind
    return Cell(plain(node.name), depth=depth, short="  " * max(depth - 1, 0) + plain(node.label), kind=kind)
