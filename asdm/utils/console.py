"""The terminal of both commands: errors in one sentence and progress on stderr, tables on stdout."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from asdm.utils import disk
from asdm.utils.progress import Tell

FAILED, USAGE, INFEASIBLE, INCOMPARABLE, INTERRUPTED = 1, 2, 3, 4, 130
EXPECTED = (ValueError, OSError, MemoryError, RuntimeError)
READER_GONE = 141  # as a shell counts the signal of a closed pipe


class Format(StrEnum):
    """How a table is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


def log() -> Console:
    """The console for messages and progress: stderr, so that stdout holds results alone."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a message on stderr; control characters in it are shown as "?"."""
    log().print(escape("".join(c if c.isprintable() or c == "\n" else "?" for c in message)))


def plain(name: str, longest: int = 200) -> str:
    """A name from a file, safe to print: control characters become "?", and a long name is cut with "…"."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def first_line(error: BaseException) -> str:
    """What a library says, as a part of a sentence and without colours."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def without_password(address: str) -> str:
    """A word of a command with the password of an address in it hidden."""
    return re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:…@", address)


def quoted(name: object) -> str:
    """A name as it is typed in a command to copy: one word for the shell, without control characters."""
    return shlex.quote(plain(str(name)))


@cache
def say_once(message: str) -> None:
    """Print a message on stderr, unless this command has printed it before."""
    say(message)


def quiet_libraries() -> None:
    """Keep what diffusers and transformers have to say off the terminal; to be called before they are imported."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Newer diffusers call this argument `dtype`; the oldest that we support knows `torch_dtype` alone.
    warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)


def run(app: typer.Typer) -> None:
    """Run a command-line app and exit: 0 done, 2 bad input in one sentence, 130 interrupted, 141 no reader left."""
    say_once.cache_clear()
    quiet_libraries()
    if not os.environ.get("COLUMNS", "").strip("0"):  # a width of nothing shows nothing
        os.environ.pop("COLUMNS", None)
    print_all_of(sys.stdout)
    print_all_of(sys.stderr, "backslashreplace")
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = _without_reader()
    except SystemExit as leaving:  # typer leaves with 1 where the pipe is broken, which for us is a failed condition
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        code = _without_reader()
    except Exception as error:
        code = _explain(error)
    if code == INTERRUPTED:
        say("Interrupted; nothing half-written was left.")
    sys.exit(code if isinstance(code, int) else 0)


def print_all_of(stream: Any, errors: str = "replace") -> None:
    """Characters that a stream's encoding lacks must not lose the rest of an answer."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors=errors)


def _without_reader() -> int:
    """The exit code where the reader of our stdout has gone; nothing more is written to it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return READER_GONE


def _explain(error: Exception) -> int:
    """Print one sentence for an expected error; re-raise anything else, which is a bug."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error from typer
        error.show()
        return int(error.exit_code)
    if os.environ.get("ASDM_TRACEBACK") or not (isinstance(error, EXPECTED) or disk.is_full(error)):
        raise error
    say(f"Error: {_sentence(error)}")
    return USAGE


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory; choose a smaller batch, size or dtype, or free some memory."
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    if disk.is_full(error):
        name = getattr(error, "filename", None)
        return f"{disk.cannot_write(Path(name), error) if name else f'cannot write: {disk.reason(error)}'}."
    if isinstance(error, RuntimeError):
        return f"{text.rstrip('.')} (set ASDM_TRACEBACK=1 to see where)."
    return text


# ---------------------------------------------------------------------------------------------- progress


@contextmanager
def progress(title: str, counted: str = "calls") -> Iterator[Tell]:
    """A spinner with stage and time left; without a terminal, a line every ten seconds with the number of `counted`."""
    console = log()
    if not console.is_terminal:
        yield _lines(title, counted)
        return
    stage_text, time_left = TextColumn("{task.description}"), TextColumn("{task.fields[left]}")
    columns = (SpinnerColumn(), stage_text, BarColumn(20), TimeElapsedColumn(), time_left)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, left="")

        def tell(stage: str, calls: int, eta_s: float | None) -> None:
            left = "" if eta_s is None else f"{left_text(eta_s)} left"
            elapsed = bar.tasks[0].elapsed or 0.0
            total = None if eta_s is None else elapsed + eta_s
            bar.update(task, description=escape(f"{title}: {stage}"), completed=elapsed, total=total, left=left)

        yield tell


def _lines(title: str, counted: str) -> Tell:
    last_stage, last_at = "", 0.0

    def tell(stage: str, calls: int, eta_s: float | None) -> None:
        nonlocal last_stage, last_at
        now = time.monotonic()
        if stage == last_stage and now - last_at < 10:
            return
        last_stage, last_at = stage, now
        left = "" if eta_s is None else f", {left_text(eta_s)} left"
        what = counted.removesuffix("s") if calls == 1 else counted
        say(f"{title}: {stage}" + (f", {calls} {what}{left}" if calls else ""))

    return tell


def left_text(seconds: float) -> str:
    """Seconds as `1 min 35 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# ---------------------------------------------------------------------------------------------- tables


def emit(rows: Sequence[dict[str, Any]], form: Format, title: str = "") -> None:
    """Print rows of plain values on stdout in the given format."""
    if form is Format.json:
        print(json.dumps(list(rows), indent=1, allow_nan=False))
    elif form is Format.csv:
        import pandas as pd

        cells = [{name: spreadsheet_safe(value) for name, value in row.items()} for row in rows]
        print(pd.DataFrame(cells).to_csv(index=False), end="")
    elif form is Format.md:
        print(markdown(rows))
    else:
        console, table = Console(highlight=False), _rich(rows, title)
        needed = Measurement.get(console, console.options.update(max_width=1 << 16), table).minimum
        console.width = max(console.width, needed)  # a line that is too long is wrapped by the terminal, not cut
        console.print(table)


def spreadsheet_safe(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = plain(value, longest=1 << 16)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    head = list(rows[0]) if rows else []
    cells = [[plain(str(v), 1 << 16).replace("|", "\\|") for v in row.values()] for row in rows]
    lines = [head, ["---" for _ in head], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rich(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """A table whose first column is shortened in a narrow terminal; the others never are."""
    title = escape(plain(title))
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(rows[0] if rows else []):
        cells = [plain(str(row[name])) for row in rows]
        numbers = all(cell[:1].isdigit() or not cell for cell in cells)
        width = max(map(len, [name, *cells])) if i else None
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True, min_width=width or 12)
    for row in rows:
        table.add_row(*(escape(plain(str(value))) for value in row.values()))
    return table
