"""Pictures of a UNet for the HTML report: the icicle of its time, the U, and the U with a plan's edits drawn in."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest

from markupsafe import Markup

from asdm.plan.topology import Topology
from asdm_prof.analysis.tree import Node
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import percent, plain
from asdm_prof.renderers.html.parts import hints, numbers
from asdm_prof.renderers.html.svg import CHARACTER, line, rect, svg, tag, text

# ---------------------------------------------------------------------------------------------- icicle

WIDTH = 1120
BANDS = {"unet": (0, 26), "block": (28, 42), "layer": (72, 24), "part": (98, 70)}  # level → top, height
BOTTOM = 168
STRIP = 12


def icicle(report: Report) -> Markup:
    """Whole → block → layer → unit from top to bottom, in the order in which data flows; width is time."""
    root, index, lines = report.tree, numbers(report), hints(report)

    def cells(node: Node, left: float, top: float) -> Iterator[Markup]:
        width = WIDTH * node.latency_s / root.latency_s
        height = BOTTOM - top if node.level == "part" else BANDS[node.level][1]
        yield _cell(node, left, top, width, height, index[node.name], lines[node.name])
        for child in node.children:
            yield from cells(child, left, top + height + 2)
            left += WIDTH * child.latency_s / root.latency_s

    title = f"Where the time of the {plain(root.label)} UNet goes: whole, blocks, layers and units in data-flow order"
    return svg("icicle", title, WIDTH, BOTTOM, cells(root, 0.0, 0.0), role="group")


def _cell(node: Node, x: float, y: float, width: float, height: float, number: int, hint: str) -> Markup:
    kind = node.kind or "group"
    inside = [rect(x, y, width, height, f"fill {kind}"), rect(x, y, width, height, f"{kind}-mark")]
    placed = node.parts[0].roofline if node.level == "part" else None
    if placed:  # a strip at the foot: the deeper its colour, the nearer the part is to the machine’s roofline
        foot, depth = y + height - STRIP, min(max(placed.attained, 0.0), 1.0)
        inside.append(rect(x, foot - 1, width, STRIP + 1, "under"))
        inside.append(rect(x, foot, width, STRIP, kind, fill_opacity=depth))
    name = short_name(node)
    inside.append(_label(name, x, y + 17 if height > 40 else y + height / 2 + 4.5, width, f"on-{kind} strong"))
    if height > 40:
        inside.append(_label(percent(node.share), x, y + 33, width, f"on-{kind} value"))
    return tag("g", tag("title", hint), *inside, class_="cell", data_node=number, data_level=node.level)


def _label(content: str, x: float, y: float, width: float, class_: str) -> Markup:
    need = len(content) * CHARACTER + 5
    hidden = None if need <= width else "hidden"
    return text(x + width / 2, y, content, f"middle {class_}", data_need=need, visibility=hidden)


def short_name(node: Node) -> str:
    """What fits into a cell: `t0` for `dn0.t0`, a block's own label otherwise."""
    return plain(node.label.rpartition(".")[2] if node.level == "part" else node.label, 60)


# ---------------------------------------------------------------------------------------------- the U

U_WIDTH, SLOT, LARGEST, INDENT, EDGE = 800, 48, 42, 36, 86


@dataclass(frozen=True)
class Mark:
    """A plan's edit of one part: None as `replacement` removes it; `size` is the time that stays, 1 = as before."""

    replacement: str | None = None
    size: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class _Row:
    """One skip: the parts that make it on the left, those that take it on the right, and their depths."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    left_depth: int
    right_depth: int
    y: float = 0.0
    height: float = 0.0


def u_picture(name: str, title: str, report: Report, marks: Mapping[str, Mark] | None = None) -> Markup:
    """The UNet as a U: one line per skip, a square's area is its part's time, and the plan's edits where given."""
    return _Drawing(report, marks or {}).draw(name, title)


class _Drawing:
    """The U of one profile, while it is drawn."""

    def __init__(self, report: Report, marks: Mapping[str, Mark]) -> None:
        profile = self.profile = report.profile
        self.index, self.hints, self.marks = numbers(report), hints(report), marks
        self.parts = {part.fqn: part for part in profile.parts}
        self.largest = max(part.latency_s.median for part in profile.parts)
        self.nodes = {node.name: node for _, node in report.tree.walk()}
        self.rows = self._placed(_rows(profile.topology))
        self.margin = 190 if marks else 0  # for the names of replacements on the right

    def draw(self, name: str, title: str) -> Markup:
        bottom = self.rows[-1].y + self.rows[-1].height + 14
        body = [self._flow(bottom), *(mark for row in self.rows for mark in self._row(row))]
        body += [*self._block_labels(), *self._mid(bottom), *self._aside(bottom)]
        return svg(name, title, U_WIDTH + self.margin, bottom + 66, body, role="img" if self.marks else "group")

    def _placed(self, rows: list[_Row]) -> list[_Row]:
        placed, y = [], 4.0
        for row in rows:
            height = max([18.0, *(self._side(fqn) + 7 for fqn in (*row.left, *row.right))])
            placed.append(replace(row, y=y, height=height))
            y += height
        return placed

    def _side(self, fqn: str) -> float:
        part = self.parts.get(fqn)
        return LARGEST * math.sqrt(max(part.latency_s.median, 0.0) / self.largest) if part else 0.0

    def _row(self, row: _Row) -> Iterator[Markup]:
        left, right, y = _left(row.left_depth), _right(row.right_depth), row.y + row.height / 2
        gone = self._gone(row.left) or self._gone(row.right)
        if row.left and row.right and not gone:
            start = left + SLOT * (len(row.left) - 0.5) + self._side(row.left[-1]) / 2
            yield line(start + 3, y, right + SLOT / 2 - self._side(row.right[0]) / 2 - 3, y, "skip")
        for x, fqns in ((left, row.left), (right, row.right)):
            for place, fqn in enumerate(fqns):
                yield from self._square(fqn, x + SLOT * (place + 0.5), y)
            yield from self._notes(fqns, x + SLOT * len(fqns) + 6, y)

    def _gone(self, fqns: tuple[str, ...]) -> bool:
        return all(fqn in self.marks and self.marks[fqn].replacement is None for fqn in fqns[:2]) if fqns else False

    def _square(self, fqn: str, x: float, y: float) -> Iterator[Markup]:
        part = self.parts.get(fqn)
        if part is None:
            return
        side, mark = self._side(fqn), self.marks.get(fqn)
        if mark is None:
            inside = _solid(part.kind, x, y, side)
        elif mark.replacement is None:
            inside = _crossed(x, y, side)
        else:
            inside = [*_solid(part.kind, x, y, side * math.sqrt(mark.size)), _box(x, y, side, "was changed")]
        node = self.nodes[fqn]
        name = short_name(node)
        if side >= 22 and len(name) <= 4 and (mark is None or mark.replacement):
            inside.append(text(x, y + 4.5, name, f"middle on-{part.kind}"))
        reason = f". {mark.reason}" if mark and mark.reason else ""
        title = tag("title", f"{self.hints[fqn]}{reason}")
        yield tag("g", title, *inside, class_="cell", data_node=self.index[fqn], data_level="part")

    def _notes(self, fqns: tuple[str, ...], x: float, y: float) -> Iterator[Markup]:
        """What replaces the units of a row, one line each, beside the row."""
        new = {fqn: self.marks[fqn].replacement for fqn in fqns if fqn in self.marks and fqn in self.nodes}
        lines = [f"{plain(short_name(self.nodes[fqn]), 4)} → {plain(name.replace('_', ' '), 24)}"
                 for fqn, name in new.items() if name]  # fmt: skip
        for place, shown in enumerate(lines):
            yield text(x, y + 4.5 + 15 * (place - (len(lines) - 1) / 2), shown, "note halo")

    def _flow(self, bottom: float) -> Markup:
        """The way of the data: down the left side, through the middle, up the right side."""
        down = [(_left(row.left_depth) + SLOT / 2, row.y + row.height / 2) for row in self.rows if row.left]
        up = [(_right(row.right_depth) + SLOT / 2, row.y + row.height / 2) for row in self.rows if row.right]
        middle = [(down[-1][0], bottom + 24), (up[-1][0], bottom + 24)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*down, *middle, *reversed(up)))
        return tag("polyline", points=points, class_="flow")

    def _block_labels(self) -> Iterator[Markup]:
        for block in (*self.profile.topology.down_blocks, *self.profile.topology.up_blocks):
            own = [row for row in self.rows if any(fqn.startswith(f"{block}.") for fqn in (*row.left, *row.right))]
            node = self.nodes.get(block)
            if not own or node is None:
                continue
            y = (own[0].y + own[-1].y + own[-1].height) / 2
            down = block.startswith("down_blocks.")
            after = 2 * SLOT + 34 + (self.margin if self._is_changed(own) else 0)
            x = _left(own[0].left_depth) - 12 if down else _right(own[-1].right_depth) + after
            side = " end" if down else ""
            yield text(x, y - 2, plain(node.label, 10), f"strong{side}")
            yield text(x, y + 14, percent(node.share), f"quiet{side}")

    def _is_changed(self, rows: list[_Row]) -> bool:
        return any(self.marks[fqn].replacement for row in rows for fqn in row.right if fqn in self.marks)

    def _mid(self, bottom: float) -> Iterator[Markup]:
        units = [unit.fqn for unit in self.profile.topology.units if unit.block == "mid_block"]
        node = self.nodes.get("mid_block")
        if not units or node is None:
            return
        start = U_WIDTH / 2 - SLOT * len(units) / 2
        for place, fqn in enumerate(units):
            yield from self._square(fqn, start + SLOT * (place + 0.5), bottom + 24)
        yield from self._notes(tuple(units), start + SLOT * len(units) + 6, bottom + 24)
        yield text(U_WIDTH / 2, bottom + 58, "mid", "strong middle")
        yield text(U_WIDTH / 2 + 18, bottom + 58, percent(node.share), "quiet")

    def _aside(self, bottom: float) -> Iterator[Markup]:
        """Glue that has no place along the flow: the time embedding, and what runs between the parts."""
        y = bottom + 56.0
        for part in self.profile.glue:
            if part.block or part.fqn in ("conv_in", "conv_out"):
                continue
            half = max(self._side(part.fqn) / 2, 8.0)
            y -= half
            yield from self._square(part.fqn, LARGEST / 2, y)
            yield text(LARGEST / 2 + half + 6, y + 4.5, plain(part.label, 20), "quiet")
            y -= half + 4


def _left(depth: int) -> float:
    return EDGE + INDENT * depth


def _right(depth: int) -> float:
    return U_WIDTH - EDGE - INDENT * depth - 2 * SLOT


def _box(x: float, y: float, side: float, class_: str) -> Markup:
    return rect(x - side / 2, y - side / 2, side, side, class_)


def _solid(kind: str, x: float, y: float, side: float) -> list[Markup]:
    return [_box(x, y, side, f"fill {kind}"), _box(x, y, side, f"{kind}-mark")]


def _crossed(x: float, y: float, side: float) -> list[Markup]:
    half = side / 2
    cross = f"M{x - half:.1f} {y - half:.1f}l{side:.1f} {side:.1f}m0 {-side:.1f}l{-side:.1f} {side:.1f}"
    return [_box(x, y, side, "was gone"), tag("path", d=cross, class_="cross")]


def _rows(topology: Topology) -> list[_Row]:
    """Skips from the outermost to the innermost: the down path pushes them, the up path pops them (§2.1)."""
    left: list[tuple[tuple[str, ...], int]] = [(("conv_in",), 0)]
    for depth, block in enumerate(topology.down_blocks):
        left += [(_layer(topology, block, layer), depth) for layer in topology.layers(block)]
        left += [((topology.samplers[block],), depth)] if block in topology.samplers else []
    right: list[tuple[tuple[str, ...], int]] = []
    for place, block in enumerate(topology.up_blocks):
        depth = len(topology.up_blocks) - 1 - place
        right += [(_layer(topology, block, layer), depth) for layer in topology.layers(block)]
        fqns, _ = right.pop()
        after = topology.samplers.get(block) or ("conv_out" if depth == 0 else None)
        right.append(((*fqns, after) if after else fqns, depth))
    pairs = zip_longest(left, reversed(right), fillvalue=((), 0))
    return [_Row(a, b, left_depth, right_depth) for (a, left_depth), (b, right_depth) in pairs]


def _layer(topology: Topology, block: str, layer: int) -> tuple[str, ...]:
    return tuple(unit.fqn for unit in topology.layer_units(block, layer))


# ---------------------------------------------------------------------------------------------- the small U

DOT, GAP = 9, 12  # pixels of a unit, and from one to the next


def small_u(name: str, title: str, topology: Topology, gone: Collection[str], replaced: Mapping[str, str]) -> Markup:
    """A plan at a glance: one square per unit, down on the left, up on the right; hollow goes, framed is replaced."""
    rows = [row for row in _rows(topology) if _units(topology, row.left) or _units(topology, row.right)]
    mid = [unit.fqn for unit in topology.units if unit.block == "mid_block"]
    kinds = {unit.fqn: unit.kind for unit in topology.units}
    squares: dict[str, list[str]] = {}  # what they are → paths, one element for all: there are many plans on a page

    def place(fqn: str, x: float, y: float) -> None:
        if fqn in gone:
            squares.setdefault("was gone", []).append(_square(x + 1, y + 1, DOT - 2))
            return
        squares.setdefault(kinds[fqn], []).append(_square(x, y, DOT))
        if fqn in replaced:
            squares.setdefault("hole", []).append(_square(x + 2.5, y + 2.5, DOT - 5))

    for nth, row in enumerate(rows):
        for start, fqns in ((0, _units(topology, row.left)), (4 * GAP, _units(topology, row.right))):
            for step, fqn in enumerate(fqns):
                place(fqn, start + step * GAP, nth * GAP)
    for step, fqn in enumerate(mid):
        place(fqn, (3 - len(mid) / 2) * GAP + step * GAP, len(rows) * GAP + 4)
    height = (len(rows) + bool(mid)) * GAP + 4
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        *(tag("path", d="".join(squares[what]), class_=what) for what in sorted(squares, key=lambda w: w == "hole")),
        class_="small-u",
        role="img",
        aria_labelledby=f"{name}-title",
        viewBox=f"0 0 {6 * GAP} {height}",
        style=f"width:{6 * GAP}px",
    )


def _units(topology: Topology, fqns: tuple[str, ...]) -> list[str]:
    known = {unit.fqn for unit in topology.units}
    return [fqn for fqn in fqns if fqn in known]


def _square(x: float, y: float, side: float) -> str:
    return f"M{x:g} {y:g}h{side:g}v{side:g}h-{side:g}z"
