"""The tree while it is being measured: a row per block, its units beside it, and the time that is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from asdm.utils import console as terminal
from asdm_prof.profiler.progress import Status, Watch

BAR = 24


@contextmanager
def watching(title: str, console: Console | None = None) -> Iterator[Watch]:
    """Show a live tree on a terminal, and a line now and then elsewhere."""
    console = console or terminal.log()
    if not console.is_terminal:
        with terminal.progress(title) as tell:
            yield lambda status: tell(status.stage, status.calls, status.eta_s)
        return
    with Live(console=console, transient=True, refresh_per_second=4) as live:
        spinner = Spinner("dots")

        def watch(status: Status) -> None:
            spinner.text = Text(headline(title, status))
            live.update(Group(spinner, block_table(status.parts, console.width)))

        yield watch


def headline(title: str, status: Status) -> str:
    """Stage, calls so far and the time left, in one line."""
    calls = f", {status.calls} call{'s' if status.calls > 1 else ''}" if status.calls else ""
    left = "" if status.eta_s is None else f", {terminal.left_text(status.eta_s)} left"
    return f"{title}: {status.stage}{calls}{left}"


def block_table(parts: dict[str, list[float]], width: int) -> Table:
    """Median milliseconds so far, summed per block, with a bar for the block's share."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("block", "bar", "ms"):
        table.add_column(column, no_wrap=True, justify="right" if column == "ms" else "left")
    table.add_column("units", no_wrap=True, overflow="ellipsis", max_width=max(width - BAR - 24, 0))
    medians = {fqn: float(np.median(seconds)) for fqn, seconds in parts.items() if seconds}
    blocks: dict[str, dict[str, float]] = {}
    for fqn, seconds in medians.items():
        block, unit = split_fqn(fqn)
        blocks.setdefault(block, {})[unit] = seconds
    longest = max((sum(units.values()) for units in blocks.values()), default=1.0)
    for block, units in blocks.items():
        total = sum(units.values())
        bar = Text("█" * round(BAR * total / longest), style="cyan")
        each = "  ".join(f"{unit} {_ms(seconds)}" for unit, seconds in units.items() if unit)
        table.add_row(block, bar, f"{_ms(total)} ms", Text(each, style="dim"))
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 9.95e-3 else f"{1e3 * seconds:.2g}"


def split_fqn(fqn: str) -> tuple[str, str]:
    """`up_blocks.3.resnets.1` → (`up_blocks.3`, `r1`); glue has no unit."""
    words = fqn.split(".")
    if len(words) < 3:
        return fqn, ""
    index = 2 if words[0] != "mid_block" else 1
    short = {"resnets": "r", "attentions": "t", "downsamplers": "down", "upsamplers": "up"}
    return ".".join(words[:index]), short.get(words[index], words[index]) + words[index + 1]
