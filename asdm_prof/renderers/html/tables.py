"""Tables of numbers: columns of cells with a text to read, an interval in a quieter tone, and a value to sort by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from asdm.records.measurement import Estimate
from asdm_prof.records import Interval
from asdm_prof.renderers._format import amount, amount_interval, decimals, fixed, plain, ratio, ratio_interval
from asdm_prof.renderers.html.content import NONE, Cell, Column, Table

SMALLEST = 0.005  # that two decimals do not make 0

Field = tuple[Column, Sequence[Cell]]  # a column with the cells below it


def table(name: str, caption: str, fields: Iterable[Field], **options: Any) -> Table:
    """A table from its columns; `options` are those of `Table`."""
    columns, cells = zip(*fields, strict=True)
    return Table(name, caption, columns, [list(row) for row in zip(*cells, strict=True)], **options)


def aligned(value: float, most: int) -> str:
    """Three significant figures with `most` decimals at most, padded so that points stand under each other."""
    digits = min(max(decimals(value), 0), most) if value else most
    missing = "\u2007" * (most - digits)  # as wide as a figure
    return fixed(value, digits) + (missing if digits or not missing else "\u2008" + missing)  # as wide as a point


def places(values: Iterable[float]) -> int:
    """Decimals, the same down a column, that leave its smallest value three significant figures.

    Two at most, unless that would make it 0.
    """
    sizes = [abs(value) for value in values if value]
    smallest = max(decimals(min(sizes)), 0) if sizes else 0
    return smallest if sizes and min(sizes) < SMALLEST else min(smallest, 2)


def number_cells(values: Sequence[float | None], most: int | None = None) -> list[Cell]:
    """One column of plain numbers with `most` decimals at most; None becomes a dash."""
    digits = places([value for value in values if value is not None]) if most is None else most
    return [NONE if value is None else Cell(aligned(value, digits), value=value) for value in values]


def interval_cells(values: Sequence[Estimate | None], scale: float = 1.0) -> list[Cell]:
    """One column of medians with their intervals; `scale` is the size of the column's unit."""
    most = places([value.median / scale for value in values if value])
    return [NONE if value is None else _interval_cell(value.scaled(1 / scale), most) for value in values]


def _interval_cell(value: Estimate, most: int) -> Cell:
    digits = min(max(decimals(value.median), 0), most)
    bounds = f"[{fixed(value.low, digits)}, {fixed(value.high, digits)}]"
    return Cell(fixed(value.median, digits), bounds, value.median, value.low, value.high)


def ratio_cells(values: Iterable[Estimate | None]) -> list[Cell]:
    """One column of student / teacher."""
    return [
        Cell(ratio(value.median), ratio_interval(value), value.median, value.low, value.high) if value else NONE
        for value in values
    ]


def ratio_cell(value: float | None, low: float | None = None, high: float | None = None) -> Cell:
    """A predicted ratio, with its interval where it has one."""
    if value is None:
        return NONE
    quiet = "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"
    return Cell(ratio(value), quiet, value, low, high)


def name_cells(names: Iterable[str], longest: int = 200) -> list[Cell]:
    """One column of names from files."""
    return [Cell(plain(name, longest)) for name in names]


def damage_cell(damage: Interval | None) -> Cell:
    """A damage with its interval where it has one."""
    if damage is None:
        return NONE
    return Cell(amount(damage.value), amount_interval(damage), damage.value, damage.low, damage.high)


def shortened(cells: Iterable[Cell], texts: Iterable[str]) -> list[Cell]:
    """The same cells with other texts in a terminal."""
    return [replace(cell, short=text) for cell, text in zip(cells, texts, strict=True)]
