"""What the benchmarks share: options, records of runs, fresh processes, and marked places of docs/results.md."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import matplotlib.style
import typer
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from asdm.cli.options import this_command
from asdm.measure import machine
from asdm.measure.machine import KEEP_MEMORY
from asdm.utils import console, io
from asdm.utils.progress import Tell
from asdm.utils.record import Record, utc_now
from asdm_prof.renderers.figures.style import STYLE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results.md"
T = TypeVar("T")

FamilyName = Annotated[str, typer.Option("--family", help="Family or diffusers folder.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: torch's.")]
JsonFile = Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.")]
Readme = Annotated[bool, typer.Option("--readme", help="Put the result into docs/results.md.")]


def run(main: Callable[..., None]) -> None:
    """Run a function as the command line that its parameters describe."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    console.run(app)


def run_fields(
    module: str, family: str, threads: int, device: str = "cpu", dtype: str = "fp32", environment: Any = None
) -> dict[str, Any]:
    """The fields of a benchmark's record that say what was run, when and where; by default in this process."""
    return {
        "created_utc": utc_now(),
        "command": this_command(f"python -m benchmarks.{module}"),
        "family": family,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "environment": environment or machine.environment(device, threads),
    }


def finish(result: Record, output: Path, force: bool, rows: Iterable[Mapping[str, Any]], summary: str = "") -> None:
    """Save a result, print its rows as a table, and say what follows and where it was written."""
    result.save(output, force)
    console.emit(list(rows), console.Format.table)
    console.say(f"{summary}Wrote {output}")


def save_figure(draw: Callable[[], Figure], stem: Path) -> None:
    """Draw a figure in the style of the package's own, and save it as SVG, PNG and PDF."""
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = draw()
        for ending in ("svg", "png", "pdf"):
            figure.savefig(stem.with_name(f"{stem.name}.{ending}"), dpi=200)


# ---------------------------------------------------------------------------------------------- fresh processes


def in_fresh_process(function: Callable[..., T], *arguments: Any, keep_memory: bool = False) -> T:
    """What a module's function returns in a Python process of its own; arguments and result travel as JSON.

    glibc reads its settings when a process starts: the new one is told to keep freed memory (`keep_memory`) or nothing,
    whatever this process was told. Raises ValueError with the last line of the process's errors if it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    environment |= KEEP_MEMORY if keep_memory else {}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    module = function.__globals__["__spec__"].name  # `__module__` is "__main__" where the module is being run
    command = [
        sys.executable,
        "-m",
        "benchmarks.script",
        module,
        function.__name__,
        json.dumps(arguments, allow_nan=False),
    ]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        raise ValueError(lines[-1] if lines else "the process was killed, perhaps because memory ran out")
    return _result_type(function).validate_json(process.stdout.splitlines()[-1])


def in_fresh_processes(function: Callable[..., T], *arguments: Any, keep_memory: Sequence[bool]) -> list[T]:
    """What a function returns in one fresh process after another; `keep_memory` is said of each."""
    with console.progress("Comparing", "turns") as tell:
        return [
            in_fresh_process(function, *arguments, keep_memory=kept)
            for kept in in_turn(keep_memory, "fresh processes", tell)
        ]


def resident_peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


def _result_type(function: Callable[..., T]) -> TypeAdapter[T]:
    return TypeAdapter(get_type_hints(function)["return"])


def in_turn(items: Sequence[T], label: str, tell: Tell) -> Iterator[T]:
    """The items one by one, telling how many are done and the time left."""
    started = time.monotonic()
    for done, item in enumerate(items):
        tell(label, done, (time.monotonic() - started) / done * (len(items) - done) if done else None)
        yield item


# ---------------------------------------------------------------------------------------------- documents


def between_marks(text: str, mark: str, inside: str) -> str:
    """A Markdown text with `inside` between `<!-- mark -->` and `<!-- /mark -->`; raises ValueError without them."""
    pattern = rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)"
    put, count = re.subn(pattern, lambda m: f"{m[1]}{inside}{m[2]}", text, flags=re.S)
    if not count:
        raise ValueError(f"there is no place for these results: <!-- {mark} --> … <!-- /{mark} --> is missing.")
    return put


def put_into_results(mark: str, inside: str) -> None:
    """Write `inside` between two marks of docs/results.md."""
    io.write_whole(RESULTS, between_marks(RESULTS.read_text(encoding="utf-8"), mark, inside), force=True)
    console.say(f"Wrote {RESULTS}")


if __name__ == "__main__":  # the fresh process
    _module, _name, _arguments = sys.argv[1:]
    _function = getattr(importlib.import_module(_module), _name)
    print(_result_type(_function).dump_json(_function(*json.loads(_arguments))).decode())
