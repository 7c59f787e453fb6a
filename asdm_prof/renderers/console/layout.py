"""What the tables of a terminal share: where they print, their style, bars, and columns that a width shows."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
QUIET = "bright_black"
COLOURS = {"resnet": "#0072B2", "transformer": "#D55E00", "glue": "bright_black"}


def stdout_console() -> Console:
    """A console on stdout that writes "?" for a character which the stream's encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


def print_section(console: Console, title: str, *contents: Table | Text) -> None:
    """A blank line, the title, and what stands under it."""
    console.print()
    console.print(Text(title, style="bold"))
    for content in contents:
        console.print(content)


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


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column that shows from a terminal width on."""

    title: str
    from_width: int
    cell: Callable[[T], str]
    quiet: bool = False
