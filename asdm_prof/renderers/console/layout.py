"""Sections in a terminal: their sentences and tables; 80 columns show most of a table, and wider ones show more."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from asdm.utils.console import print_all_of
from asdm_prof.renderers._format import plain, tied
from asdm_prof.renderers.html.content import Block, Cell, Column, Listing, Paragraph, Section, Table as Content, flat

QUIET = "bright_black"
COLOURS = {
    "resnet": "#0072B2", "transformer": "#D55E00", "glue": "bright_black", "group": "bold", "failed": "bold red",
}  # fmt: skip
STYLES = {"lead": "bold", "quiet": QUIET}
BARS_FROM = 76  # columns of the terminal
# What the page sets in type and a terminal does not.
TYPED = str.maketrans({"’": "'", "“": '"', "”": '"', "\u2007": " ", "\u2008": " ", "\u00a0": " ", "–": "-"})


def stdout_console() -> Console:
    """A console on stdout that writes "?" for a character which the stream's encoding lacks."""
    print_all_of(sys.stdout)
    return Console(highlight=False)


def print_sections(console: Console, sections: Sequence[Section], title: str = "") -> None:
    """Every section that a terminal has something of; `title` stands over the first."""
    for section in sections:
        contents = [content for block in section.blocks for content in rendered(block, console.width)]
        if not contents:
            continue
        heading = " ".join(filter(None, [title, section.title]))
        title = ""
        if heading:
            console.print()
            console.print(Text(typed(heading), style="bold"))
        for content, before in zip(contents, [None, *contents], strict=False):
            if isinstance(content, Table) and isinstance(before, Table):
                console.print()
            console.print(content)


def rendered(block: Block, width: int) -> Iterator[RenderableType]:
    """What a terminal of so many columns shows of a block."""
    if block.medium == "page":
        return
    if isinstance(block, Paragraph):
        yield Text(_wrapped(typed(flat(block.spans)), width), style=STYLES.get(block.style, ""))
    elif isinstance(block, Listing):
        for place, item in enumerate(block.items, 1):
            yield Text(_wrapped((f"{place}. " if block.ordered else "") + typed(flat(item)), width))
    elif isinstance(block, Content):
        yield rich_table(block, width)


def typed(text: str) -> str:
    """A text with the characters that a keyboard has, and nothing that a terminal would obey."""
    return plain(text.translate(TYPED), 10_000)


def _wrapped(text: str, width: int) -> str:
    """Lines of so many columns, of which none ends between a number and its unit."""
    return "\n".join(textwrap.wrap(tied(text), width)).translate(TYPED)


# ---------------------------------------------------------------------------------------------- tables


def rich_table(content: Content, width: int) -> Table:
    """The columns that so wide a terminal has room for."""
    table = blank_table(show_header=any(column.name for column in content.columns))
    fields = [
        (place, column)
        for place, column in enumerate(content.columns)
        if column.terminal_from is not None and width >= column.terminal_from
    ]
    if content.terminal_order:
        fields.sort(key=lambda field: content.terminal_order.index(field[1].name))
    columns: list[list[RenderableType]] = []
    for place, column in fields:
        cells = [row[place] for row in content.rows]
        texts = [_text(column, cell, width) for cell in cells]
        title = typed(column.name if column.short is None else column.short)
        _add_column(table, title, column, _room(fields, content, width) if not column.numeric else None)
        columns.append([Text(text, style=COLOURS.get(cell.kind, "")) for text, cell in zip(texts, cells, strict=True)])
        if place == content.head and content.bars and width >= BARS_FROM:
            long = min(24, width - 68)
            table.add_column("time", no_wrap=True, min_width=long)
            columns.append([Bar(bar, long, COLOURS.get(cell.kind, "") if cell.kind != "group" else "")
                            for bar, cell in zip(content.bars, cells, strict=True)])  # fmt: skip
        if column.bounds_from is not None and width >= column.bounds_from:
            table.add_column("95 %", justify="right", no_wrap=True, style=QUIET)
            columns.append([Text(typed(cell.quiet)) for cell in cells])
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _add_column(table: Table, title: str, column: Column, room: int | None) -> None:
    justify: Literal["right", "left"] = "right" if column.numeric else "left"
    if column.wraps:
        table.add_column(title, justify=justify)
    else:
        style = QUIET if title == "95 %" else ""
        table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis", max_width=room, style=style)


def _text(column: Column, cell: Cell, width: int) -> str:
    whole = cell.short is None or (column.full_from is not None and width >= column.full_from)
    return typed(cell.text if whole or cell.short is None else cell.short)


def _room(fields: Sequence[tuple[int, Column]], content: Content, width: int) -> int:
    """Columns of the terminal that the numbers leave for each name, 16 at least."""
    names = sum(not column.numeric for _, column in fields)
    taken = 0
    for place, column in fields:
        cells = [row[place] for row in content.rows]
        if column.numeric:
            title = column.name if column.short is None else column.short
            taken += 1 + max([len(title), *(len(_text(column, cell, width)) for cell in cells)])
        if column.bounds_from is not None and width >= column.bounds_from:
            taken += 1 + max(len(cell.quiet) for cell in cells) if cells else 0
    return max(16, (width - taken) // max(names, 1) - 1)


def blank_table(show_header: bool = True) -> Table:
    """A table without columns yet, in the style of all of them."""
    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=show_header, header_style=QUIET)


@dataclass(frozen=True)
class Bar:
    """A bar in a table's cell, `share` of the cell long; blocks, or `#` where the terminal knows only ASCII."""

    share: float
    cells: int
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(8 * self.cells * min(max(self.share, 0.0), 1.0))
        if options.ascii_only:
            yield Text("#" * round(eighths / 8), style=self.style)
        else:
            yield Text("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip(), style=self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.cells, self.cells)
