"""The parts of the UNet as the page's script knows them: a number, a line of text and a card of figures each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from asdm.plan.edits import AnyEdit, ReplaceUnit
from asdm_prof.analysis.edits import unit_damages
from asdm_prof.analysis.tree import Node
from asdm_prof.records import PartRecord
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import BOUNDS, amount_text, count, number, percent, plain, seconds, seconds_interval
from asdm_prof.renderers.html.svg import KINDS


def numbers(report: Report) -> dict[str, int]:
    """The number of every node, in the order of the tree."""
    return {node.name: i for i, (_, node) in enumerate(report.tree.walk())}


def hints(report: Report) -> dict[str, str]:
    """Every node in one line, for a pointer that rests on it and for a screen reader."""
    return {node.name: _hint(node) for _, node in report.tree.walk()}


def _hint(node: Node) -> str:
    size = f"{count(node.macs)}MAC, {count(node.params)} parameters"
    return plain(f"{node.name}: {percent(node.share)} of the time, {seconds(node.latency_s)}, {size}", 300)


def share_of(value: float, whole: float) -> str:
    """A part of a whole as "37 %"; a dash where there is no whole."""
    return percent(value / whole) if whole else "–"


def damage_word(edit: AnyEdit) -> str:
    """What an edit of one unit does to it."""
    return f"with {edit.with_}" if isinstance(edit, ReplaceUnit) else "when removed"


def island(report: Report) -> Markup:
    """All nodes as JSON for the script, in which nothing can end its element."""
    text = json.dumps({"nodes": list(_nodes(report))}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _nodes(report: Report) -> Iterator[dict[str, Any]]:
    """What the script knows of each node: its measures, its texts for each measure, its parent and its leaves."""
    root, damages = report.tree, unit_damages(report.damage)
    ranks = {row.fqn: row for row in report.ranked}
    leaves = 0
    parents: list[int] = []
    for i, (depth, node) in enumerate(root.walk()):
        parents = [*parents[:depth], i]
        rows = list(_measures(node, root))
        if node.name in ranks:
            place = ranks[node.name]
            rows.append(
                ("redundancy", f"{number(place.redundancy.median)}×, rank {place.rank}, tie group {place.tie_group}")
            )
        rows += _roofline_rows(node)
        if node.name in damages:
            edit, damage = damages[node.name]
            rows.append((f"damage, {plain(damage_word(edit), 40)}", amount_text(damage)))
        rows += [
            (f"with {plain(option.replacement, 40)}", seconds(option.latency_s.median))
            for option in report.profile.options
            if option.unit == node.name
        ]
        yield {
            "name": plain(node.name),
            "level": node.level,
            "parent": parents[depth - 1] if depth else None,
            "leaves": [leaves, leaves + len(node.parts)],
            "measures": [node.latency_s, node.macs, node.params, node.peak_memory_bytes],
            "texts": [
                percent(node.share),
                share_of(node.macs, root.macs),
                share_of(node.params, root.params),
                f"{number(node.peak_memory_bytes / 1e6, 2)} MB",
            ],
            "rows": rows,
        } | ({"samples": _samples(node.parts[0])} if node.level == "part" else {})
        leaves += node.level == "part"


def _measures(node: Node, root: Node) -> Iterator[tuple[str, str]]:
    if node.level == "part":
        latency = node.parts[0].latency_s
        yield "kind", KINDS[node.kind]
        yield "time", f"{seconds(latency.median)} {seconds_interval(latency)}"
    else:
        yield "time", seconds(node.latency_s)
    yield "share of the time", percent(node.share)
    yield "parameters", f"{count(node.params)} ({share_of(node.params, root.params)})"
    yield "computation", f"{count(node.macs)}MAC ({share_of(node.macs, root.macs)})"
    for name in ("conv", "linear", "attention"):
        macs = sum(getattr(part, f"{name}_macs") for part in node.parts)
        if macs:
            yield f"– {name}", f"{count(macs)}MAC"
    yield "peak memory", f"{number(node.peak_memory_bytes / 1e6)} MB"


def _roofline_rows(node: Node) -> list[tuple[str, str]]:
    placed = node.parts[0].roofline if node.level == "part" else None
    return [("bound by", BOUNDS[placed.bound]), ("of the roofline", percent(placed.attained))] if placed else []


def _samples(part: PartRecord) -> list[float]:
    """Every run in milliseconds, with the median and its interval in front."""
    latency = part.latency_s
    return [float(f"{1e3 * value:.4g}") for value in (latency.median, latency.low, latency.high, *latency.samples)]
