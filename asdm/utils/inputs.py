"""The files and folders that a command reads, none of which is its output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_READ: ContextVar[dict[Path, str] | None] = ContextVar("read", default=None)


@contextmanager
def of_command(names: Iterable[str]) -> Iterator[None]:
    """During the block, what is there under these names, and every record that is loaded, counts as an input."""
    token = _READ.set({})
    try:
        for name in names:
            note(name)
        yield
    finally:
        _READ.reset(token)


def note(name: str | Path) -> None:
    """Count a file or folder as an input of the command that runs; outside of one, nothing is counted."""
    read = _READ.get()
    if read is not None and os.path.exists(name):  # which a prompt is too long for, without an error
        read.setdefault(Path(name).resolve(), str(name))


def names() -> list[str]:
    """What the command that runs reads, as it was named."""
    return list((_READ.get() or {}).values())


def is_input(path: Path) -> bool:
    """Whether the command that runs reads this very file or folder."""
    return path.resolve() in (_READ.get() or {})


def check_output(path: Path) -> None:
    """Raises ValueError for `-`, and where `path` is an input of the command that runs."""
    if path.parts[:1] == ("-",):
        raise ValueError("- is not an output: results are files.")
    if is_input(path):
        raise ValueError(f"{path} is an input of this command; name another output.")


def held_in(folder: Path, names: Iterable[str]) -> str | None:
    """The first of these files or folders that is `folder` or lies in it."""
    place = folder.resolve()
    for name in names:
        if os.path.exists(name) and place in (given := Path(name).resolve(), *given.parents):
            return name
    return None
