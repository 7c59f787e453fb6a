"""What several of the HTML report's five questions need of a report, worked out once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asdm.plan.edits import AnyEdit, GraftBlock, PruningPlan, RemoveBlock, RemoveLayer, ReplaceUnit
from asdm.records.bench import BenchStudent
from asdm_prof.analysis.rank import Ranked, rank
from asdm_prof.analysis.tree import Node, tree_of
from asdm_prof.records import EditDamage, Interval, OptionRecord, PartRecord, Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import (
    BOUNDS,
    amount_text,
    count,
    number,
    percent,
    plain,
    seconds,
    seconds_interval,
)
from asdm_prof.renderers.html.svg import KINDS


class View:
    """A report with its tree, its ranking, its students, and one entry per node for the script."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.profile: Profile = report.profile
        self.plan: PruningPlan | None = report.plan
        self.root: Node = tree_of(report.profile)
        self.ranked: list[Ranked] = rank(report.profile)
        self.by_fqn = {row.fqn: row for row in self.ranked}
        walked = [node for _, node in self.root.walk()]
        self.index = {node.name: i for i, node in enumerate(walked)}
        self.labels = {node.name: node.label for node in walked if node.level == "block"}
        self.told = {node.name: _told(node) for node in walked}
        self.damages = _damages(report)
        self.nodes = list(_card_nodes(self))
        self.students = [student for bench in report.benches for student in bench.students]
        self.own = next((student for student in self.students if self.is_own(student)), None)

    def is_own(self, student: BenchStudent) -> bool:
        """Whether a student was built from the report's plan."""
        return self.plan is not None and student.plan_sha256 == self.plan.sha256()

    def part(self, fqn: str) -> PartRecord | None:
        return next((part for part in self.profile.parts if part.fqn == fqn), None)


def _told(node: Node) -> str:
    """A part in one line, for a pointer that rests on it and for a screen reader."""
    size = f"{count(node.macs)}MAC, {count(node.params)} parameters"
    return plain(f"{node.name}: {percent(node.share)} of the time, {seconds(node.latency_s)}, {size}", 300)


def _card_nodes(view: View) -> Iterator[dict[str, Any]]:
    """What the script knows of each node: its measures, its texts for each measure, its parent and its leaves."""
    leaves = 0
    parents: list[int] = []
    for i, (depth, node) in enumerate(view.root.walk()):
        parents = [*parents[:depth], i]
        yield {
            "name": plain(node.name),
            "level": node.level,
            "parent": parents[depth - 1] if depth else None,
            "leaves": [leaves, leaves + len(node.parts)],
            "measures": [node.latency_s, node.macs, node.params, node.peak_memory_bytes],
            "texts": [
                percent(node.share),
                share_of(node.macs, view.root.macs),
                share_of(node.params, view.root.params),
                f"{number(node.peak_memory_bytes / 1e6, 2)} MB",
            ],
            "rows": list(_card_rows(view, node)),
        } | ({"samples": _samples(node.parts[0])} if node.level == "part" else {})
        leaves += node.level == "part"


def _samples(part: PartRecord) -> list[float]:
    """Every run in milliseconds, with the median and its interval in front."""
    latency = part.latency_s
    shown = (latency.median, latency.low, latency.high, *latency.samples)
    return [float(f"{1e3 * seconds:.4g}") for seconds in shown]


def _damages(report: Report) -> dict[str, tuple[AnyEdit, Interval]]:
    """unit → the edit that is about it alone, and what damage that does: a removal where it was measured."""
    found: dict[str, tuple[AnyEdit, Interval]] = {}
    for row in report.damage.edits if report.damage else ():
        unit = None if row.also else getattr(row.edit, "unit", None)
        if unit and (unit not in found or not isinstance(row.edit, ReplaceUnit)):
            found[unit] = row.edit, row.damage
    return found


def share_of(value: float, whole: float) -> str:
    """A part of a whole as "37 %"; a dash where there is no whole."""
    return percent(value / whole) if whole else "–"


def _card_rows(view: View, node: Node) -> Iterator[tuple[str, str]]:
    part = node.parts[0] if node.level == "part" else None
    if part:
        yield "kind", KINDS[part.kind]
        yield "time", f"{seconds(part.latency_s.median)} {seconds_interval(part.latency_s)}"
    else:
        yield "time", seconds(node.latency_s)
    yield "share of the time", percent(node.share)
    yield "parameters", f"{count(node.params)} ({share_of(node.params, view.root.params)})"
    yield "computation", f"{count(node.macs)}MAC ({share_of(node.macs, view.root.macs)})"
    for name in ("conv", "linear", "attention"):
        macs = sum(getattr(one, f"{name}_macs") for one in node.parts)
        if macs:
            yield f"– {name}", f"{count(macs)}MAC"
    yield "peak memory", f"{number(node.peak_memory_bytes / 1e6)} MB"
    ranked = view.by_fqn.get(node.name)
    if ranked:
        yield "redundancy", f"{number(ranked.redundancy.median)}×, rank {ranked.rank}, tie group {ranked.tie_group}"
    if part and part.roofline:
        placed = part.roofline
        yield "bound by", BOUNDS[placed.bound]
        yield "of the roofline", percent(placed.attained)
    if node.name in view.damages:
        edit, done = view.damages[node.name]
        yield f"damage, {plain(damage_word(edit), 40)}", amount_text(done)
    for option in view.profile.options:
        if option.unit == node.name:
            yield f"with {plain(option.replacement, 40)}", seconds(option.latency_s.median)


def prediction_of(view: View) -> tuple[float, str] | None:
    """The predicted ratio and its interval as text: the plan's own, else the one that its student was benched with."""
    if view.plan and view.plan.predicted:
        found = view.plan.predicted
        return found.ratio, f"[{found.low:.2f}, {found.high:.2f}]"
    if view.own is None or view.own.predicted_ratio is None:
        return None
    low, high = view.own.predicted_low, view.own.predicted_high
    return view.own.predicted_ratio, "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def option_of(profile: Profile, fqn: str, name: str) -> OptionRecord | None:
    """The replacement `name` as it was timed in the place of unit `fqn`, where it was."""
    return next((o for o in profile.options if o.unit == fqn and o.replacement == name), None)


def damage_word(edit: AnyEdit) -> str:
    """What an edit of one unit does to it."""
    return f"with {edit.with_}" if isinstance(edit, ReplaceUnit) else "when removed"


def touched(profile: Profile, edit: AnyEdit) -> list[PartRecord]:
    """The parts that an edit is about."""
    if isinstance(edit, RemoveLayer):
        return [part for part in profile.parts if (part.block, part.layer) == (edit.block, edit.layer)]
    if isinstance(edit, RemoveBlock | GraftBlock):
        return [part for part in profile.parts if part.block == edit.block]
    return [part for part in profile.parts if part.fqn == edit.unit]


def edits_share(view: View, *edits: AnyEdit) -> tuple[float, float]:
    """The shares of the time and of the parameters that edits are about, each part counted once."""
    parts = {part.fqn: part for edit in edits for part in touched(view.profile, edit)}.values()
    return sum(part.share.median for part in parts), sum(part.params for part in parts) / view.profile.whole.params


def damage_of(view: View, edit: AnyEdit) -> EditDamage | None:
    """What was measured of an edit of the plan: alone, or with others of the plan that must go along with it."""
    planned = view.plan.edits if view.plan else ()
    rows = view.report.damage.edits if view.report.damage else ()
    fitting = [row for row in rows if edit in row.edits and all(one in planned for one in row.edits)]
    return min(fitting, key=lambda row: len(row.edits), default=None)
