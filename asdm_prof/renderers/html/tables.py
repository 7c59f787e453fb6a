"""Tables of the HTML report: cells with a text to read, an interval in a quieter tone, and a value to sort by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asdm.plan.edits import AnyEdit
from asdm.records.bench import BenchResult, BenchStudent, BenchTeacher
from asdm.records.measurement import Estimate, mac_unit
from asdm_prof.analysis.rank import Ranked
from asdm_prof.analysis.structure import Row
from asdm_prof.analysis.tree import Node
from asdm_prof.records import Interval, PartRecord, Profile
from asdm_prof.renderers import FamilyCost
from asdm_prof.renderers._format import (
    amount,
    amount_interval,
    decimals,
    fixed,
    metric_name,
    plain,
    plural,
    ratio,
    ratio_interval,
    second_unit,
)
from asdm_prof.renderers.html.svg import KINDS, component_name


@dataclass(frozen=True)
class Column:
    """A name and the unit of every value below it."""

    name: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """`value`, `low` and `high` are in the column's unit, for sorting and for CSV."""

    text: str
    quiet: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    depth: int = 0


@dataclass(frozen=True)
class Table:
    """A caption, a head, rows, and sums underneath where there are any."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    foot: Sequence[list[Cell]] = ()


NONE = Cell("–")

# ---------------------------------------------------------------------------------------------- columns


def aligned(value: float, most: int) -> str:
    """Three significant figures with `most` decimals at most, padded so that points stand under each other."""
    digits = min(max(decimals(value), 0), most) if value else most
    missing = "\u2007" * (most - digits)  # as wide as a figure
    return fixed(value, digits) + (missing if digits or not missing else "\u2008" + missing)  # as wide as a point


def places(values: Iterable[float]) -> int:
    """Decimals, the same down a column, that leave its smallest value three significant figures (two at most)."""
    found = [abs(value) for value in values if value]
    return min(max(decimals(min(found)), 0), 2) if found else 0


def number_cells(values: Sequence[float | None], most: int | None = None) -> list[Cell]:
    """One column of plain numbers with `most` decimals at most; None becomes a dash."""
    digits = places([value for value in values if value is not None]) if most is None else most
    return [NONE if value is None else Cell(aligned(value, digits), value=value) for value in values]


def interval_cells(values: Sequence[Estimate | None], scale: float = 1.0) -> list[Cell]:
    """One column of medians with their intervals; `scale` is the size of the column's unit."""
    most = places([value.median / scale for value in values if value])
    cells = []
    for value in values:
        if value is None:
            cells.append(NONE)
            continue
        median, low, high = value.median / scale, value.low / scale, value.high / scale
        digits = min(max(decimals(median), 0), most)
        bounds = f"[{fixed(low, digits)}, {fixed(high, digits)}]"
        cells.append(Cell(fixed(median, digits), bounds, median, low, high))
    return cells


def ratio_cells(values: Sequence[Estimate | None]) -> list[Cell]:
    """One column of student / teacher."""
    return [
        Cell(ratio(value.median), ratio_interval(value), value.median, value.low, value.high) if value else NONE
        for value in values
    ]


def name_cells(names: Iterable[str], depths: Iterable[int] | None = None) -> list[Cell]:
    """One column of names from files."""
    rows = list(names)
    return [Cell(plain(name), depth=depth) for name, depth in zip(rows, depths or [0] * len(rows), strict=True)]


def _rows(columns: Iterable[list[Cell]]) -> list[list[Cell]]:
    return [list(row) for row in zip(*columns, strict=True)]


# ---------------------------------------------------------------------------------------------- tables


def unit_table(
    profile: Profile, ranked: Sequence[Ranked], damages: Mapping[str, tuple[AnyEdit, Interval]] | None = None
) -> Table:
    """Every unit from most to least redundant, with glue and the whole underneath."""
    units = {unit.fqn: unit for unit in profile.units}
    parts = [units[row.fqn] for row in ranked]
    scale, unit = second_unit(min(part.latency_s.median for part in parts))
    macs, macs_unit = mac_unit(profile.whole.macs)
    columns = [
        Column("rank"),
        Column("unit", numeric=False),
        Column("kind", numeric=False),
        *_counted(macs_unit),
        Column("latency", unit),
        Column("share", "%"),
        Column("redundancy", "×"),
        Column("tie group"),
    ]
    cells = [
        number_cells([row.rank for row in ranked], 0),
        name_cells(row.fqn for row in ranked),
        name_cells(KINDS[row.kind] for row in ranked),
        *_counted_cells(parts, macs),
        interval_cells([part.latency_s for part in parts], scale),
        interval_cells([part.share for part in parts], 1e-2),
        interval_cells([row.redundancy for row in ranked]),
        number_cells([row.tie_group for row in ranked], 0),
    ]
    if any(part.roofline for part in parts):
        columns.append(Column("of roof", "%"))
        cells.append(number_cells([100 * part.roofline.attained if part.roofline else None for part in parts], 0))
    if damages:
        columns.append(Column("damage"))
        cells.append([damage_cell(damages[row.fqn][1] if row.fqn in damages else None) for row in ranked])
    rows = _rows(cells)
    caption = f"{len(parts)} units, most redundant first. One MAC is two FLOPs; in brackets the 95 % interval."
    sums = (("glue", profile.glue), ("units + glue", profile.parts))
    foot = [_foot(name, of, scale, macs, len(columns)) for name, of in sums]
    return Table("units", caption, columns, rows, foot)


def _counted(unit: str) -> tuple[Column, ...]:
    return (Column("parameters", "M"), *(Column(what, unit) for what in ("conv", "linear", "attention")))


def _counted_cells(parts: Sequence[PartRecord], macs: float) -> list[list[Cell]]:
    return [
        number_cells([part.params / 1e6 for part in parts]),
        number_cells([part.conv_macs / macs or None for part in parts]),
        number_cells([part.linear_macs / macs or None for part in parts]),
        number_cells([part.attention_macs / macs or None for part in parts]),
    ]


def _foot(name: str, parts: Sequence[PartRecord], scale: float, macs: float, width: int) -> list[Cell]:
    """Sums over parts, so that a reader can add the columns up."""
    counts = [
        sum(part.params for part in parts) / 1e6,
        sum(part.conv_macs for part in parts) / macs,
        sum(part.linear_macs for part in parts) / macs,
        sum(part.attention_macs for part in parts) / macs,
    ]
    time = sum(part.latency_s.median for part in parts) / scale
    share = 100 * sum(part.share.median for part in parts)
    sums = [*number_cells([value or None for value in counts], 2), Cell(fixed(time, 0)), Cell(fixed(share, 1))]
    row = [Cell(""), Cell(name), Cell(""), *sums]
    return row + [Cell("")] * (width - len(row))


def damage_cell(found: Interval | None) -> Cell:
    """A damage with its interval where it has one."""
    if found is None:
        return NONE
    return Cell(amount(found.value), amount_interval(found), found.value, found.low, found.high)


def tree_table(root: Node) -> Table:
    """Whole, blocks, layers and parts with all four measures: the icicle as text."""
    walked = list(root.walk())
    nodes = [node for _, node in walked]
    macs, macs_unit = mac_unit(root.macs)
    columns = [
        Column("part", numeric=False),
        Column("latency", "ms"),
        Column("share", "%"),
        Column("computation", macs_unit),
        Column("parameters", "M"),
        Column("peak memory", "MB"),
    ]
    rows = _rows(
        [
            name_cells((node.name for node in nodes), (depth for depth, _ in walked)),
            number_cells([1e3 * node.latency_s for node in nodes], 1),
            number_cells([100 * node.share for node in nodes], 2),
            number_cells([node.macs / macs for node in nodes], 2),
            number_cells([node.params / 1e6 for node in nodes], 2),
            number_cells([node.peak_memory_bytes / 1e6 for node in nodes], 0),
        ]
    )
    return Table("tree", "The same as a table, in data-flow order.", columns, rows)


def block_table(sums: dict[str, dict[tuple[str, str], float]], blocks: Sequence[str]) -> Table:
    """Milliseconds and millions of parameters of each block's ResNet and Transformer units (Fig. 2)."""
    columns = [Column("block", numeric=False)]
    cells = [name_cells(blocks)]
    for measure, unit in (("time", "ms"), ("params", "M")):
        for kind in ("resnet", "transformer"):
            columns.append(Column(f"{KINDS[kind]} {'latency' if measure == 'time' else 'parameters'}", unit))
            cells.append(number_cells([sums[measure].get((block, kind)) for block in blocks]))
    return Table("blocks", "The same as a table.", columns, _rows(cells))


def resemblance_table(rows: Sequence[Row], models: tuple[str, str]) -> Table:
    """Parts of the whole that each block takes in two models."""
    columns, cells = [Column("block", numeric=False)], [name_cells(row.name for row in rows)]
    for measure in ("time", "macs", "params"):
        for model, shares in zip(models, ([row.ours for row in rows], [row.theirs for row in rows]), strict=True):
            name = {"time": "time", "macs": "MACs", "params": "parameters"}[measure]
            columns.append(Column(name, f"{plain(model, 20)}, %"))
            if measure == "time":
                cells.append(interval_cells([one.time for one in shares], 1e-2))
            else:
                cells.append(number_cells([100 * getattr(one, measure) for one in shares]))
    found = _rows(cells)
    return Table("beside", "Part of the whole UNet; glue is left out.", columns, found[:-1], found[-1:])


def cost_table(costs: Sequence[FamilyCost]) -> Table:
    """Parameters and MACs per image of each component of each family (Fig. 1)."""
    columns = [
        Column("family", numeric=False),
        Column("component", numeric=False),
        Column("parameters", "M"),
        Column("one call", "GMAC"),
        Column("calls per image"),
        Column("an image", "GMAC"),
    ]
    rows = _rows(
        [
            name_cells(cost.title for cost in costs),
            name_cells(component_name(cost.component) for cost in costs),
            number_cells([cost.params / 1e6 for cost in costs], 0),
            number_cells([cost.macs / 1e9 for cost in costs], 1),
            number_cells([cost.calls for cost in costs], 0),
            number_cells([cost.macs * cost.calls / 1e9 for cost in costs], 0),
        ]
    )
    return Table("costs", "The same as a table.", columns, rows)


def bench_table(bench: BenchResult, number: int) -> Table:
    """Teacher and students of one benchmark; a column that no student fills is left out."""
    teacher, students = bench.teacher, bench.students
    models: list[BenchTeacher | BenchStudent] = [teacher, *students]
    scale, unit = second_unit(min(model.unet_latency_s.median for model in models))
    macs, macs_name = mac_unit(teacher.macs)
    ratios: dict[str, list[Estimate | None]] = {
        "UNet": [student.unet_latency_ratio for student in students],
        "guided batch": [student.guided_latency_ratio for student in students],
        "whole image": [student.image_latency_ratio for student in students],
    }
    columns = [
        Column("model", numeric=False),
        Column("parameters", "M"),
        Column("computation", macs_name),
        Column("latency", unit),
    ]
    cells = [
        name_cells([f"{teacher.name} (teacher)", *(student.name for student in students)]),
        number_cells([model.params / 1e6 for model in models]),
        number_cells([model.macs / macs for model in models]),
        interval_cells([model.unet_latency_s for model in models], scale),
    ]
    if any(student.predicted_ratio for student in students):
        columns.append(Column("predicted", "student / teacher"))
        cells.append([NONE, *map(_predicted, students)])
    for name, values in ratios.items():
        if any(values):
            columns.append(Column(name, "student / teacher"))
            cells.append([Cell(ratio(1), value=1.0), *ratio_cells(values)])
    for metric in dict.fromkeys(name for student in students for name in student.quality):
        columns.append(Column(metric_name(metric, 24)))
        cells.append(_quality(metric, students))
    return Table(f"bench-{number}", _conditions(bench), columns, _rows(cells))


def _predicted(student: BenchStudent) -> Cell:
    if student.predicted_ratio is None:
        return NONE
    low, high = student.predicted_low, student.predicted_high
    quiet = f"[{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return Cell(ratio(student.predicted_ratio), quiet, student.predicted_ratio, low, high)


def _quality(metric: str, students: Sequence[BenchStudent]) -> list[Cell]:
    """A metric down the students, with the teacher's own value and noise on top."""
    found = [student.quality.get(metric) for student in students]
    values = interval_cells([Estimate(median=one.value, low=one.low, high=one.high) if one else None for one in found])
    known = next((one for one in found if one and one.teacher is not None), None)
    if known is None or known.teacher is None:
        return [NONE, *values]
    digits = places([known.teacher])
    noise = "" if known.noise_floor is None else f"noise {fixed(known.noise_floor, places([known.noise_floor]))}"
    return [Cell(fixed(known.teacher, digits), noise, known.teacher), *values]


def _conditions(bench: BenchResult) -> str:
    """One sentence on what was run, and how an image is made."""
    run = f"{bench.dtype} on {bench.device}, {plural(bench.threads, 'thread')}, batch {bench.batch}, {bench.size} px"
    made = ""
    if bench.pipeline:
        how = "composed from the measured parts" if bench.pipeline.composed else "run from prompt to pixels"
        made = f" An image: {bench.pipeline.steps} steps, guidance {bench.pipeline.guidance_scale:g}, {how}."
    return plain(f"Ratios are student / teacher, measured in pairs: {run}, {bench.weights} weights.{made}", 400)
