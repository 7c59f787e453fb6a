"""What the benchmarks share: options, fresh processes, progress over turns, and marked places of docs/results.md."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import TypeAdapter

from asdm.measure.machine import KEEP_MEMORY
from asdm.utils import console, io
from asdm.utils.progress import Tell

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
    command = [sys.executable, "-m", "benchmarks.script", module, function.__name__, json.dumps(arguments)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        raise ValueError(lines[-1] if lines else "the process was killed, perhaps because memory ran out")
    return _result_type(function).validate_json(process.stdout.splitlines()[-1])


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
    """A Markdown text with `inside` between `<!-- mark -->` and `<!-- /mark -->`."""
    return re.sub(rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)", lambda m: f"{m[1]}{inside}{m[2]}", text, flags=re.S)


def put_into_results(mark: str, inside: str) -> None:
    """Write `inside` between two marks of docs/results.md."""
    io.write_whole(RESULTS, between_marks(RESULTS.read_text(encoding="utf-8"), mark, inside), force=True)
    console.say(f"Wrote {RESULTS}")


if __name__ == "__main__":  # the fresh process
    _module, _name, _arguments = sys.argv[1:]
    _function = getattr(importlib.import_module(_module), _name)
    print(_result_type(_function).dump_json(_function(*json.loads(_arguments))).decode())
