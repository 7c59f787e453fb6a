"""Two profiles beside each other: the whole and every part, before and after."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from asdm_prof.analysis.diff import Change, Difference, PartChange
from asdm_prof.renderers._format import number, plain, seconds
from asdm_prof.renderers.console.layout import COLOURS, blank_table


def diff_table(difference: Difference, width: int) -> Table:
    """The whole and every part, before and after; bold where the interval excludes that nothing changed."""
    table = blank_table()
    table.add_column("B / A", no_wrap=True, overflow="ellipsis", max_width=24 if width < 100 else 40)
    columns = {title: cell for title, from_width, cell in DIFF_COLUMNS if width >= from_width}
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for part in (difference.whole, *difference.parts):
        name = Text(plain(part.label if width < 100 else part.fqn), style=COLOURS.get(part.kind, "bold"))
        cells = [cell(part) for cell in columns.values()]
        table.add_row(name, *cells, style="bold" if part.p50.is_real else "")
    return table


def change_text(change: Change) -> str:
    """`+7.3 % [+5.1 %, +9.8 %]`; exact figures have no interval."""
    if change.ratio is None:
        return "" if change.a == change.b else f"from {number(change.a)} to {number(change.b)}"
    interval = (
        f" [{_gain(change.ratio.low)}, {_gain(change.ratio.high)}]" if change.ratio.low < change.ratio.high else ""
    )
    return f"{_gain(change.ratio.median)}{interval}"


def _gain(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _change(what: str) -> Callable[[PartChange], str]:
    def cell(part: PartChange) -> str:
        change: Change = getattr(part, what)
        return _gain(change.ratio.median) if change.ratio and change.ratio.median != 1 else ""

    return cell


DIFF_COLUMNS: tuple[tuple[str, int, Callable[[PartChange], str]], ...] = (  # title, from which width on, cell
    ("A", 60, lambda part: seconds(part.p50.a)),
    ("B", 60, lambda part: seconds(part.p50.b)),
    ("p50", 0, lambda part: change_text(part.p50)),
    ("p95", 80, _change("p95")),
    ("share", 76, _change("share")),
    ("MACs", 90, _change("macs")),
    ("params", 90, _change("params")),
)
