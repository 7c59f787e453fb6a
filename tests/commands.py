"""What a command did, for tests that type one with the fixture `run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """Exit code and both streams of one command."""

    code: int
    out: str
    err: str


def refused(found: Result, *words: str, code: int = 2) -> None:
    """One sentence on stderr with these words in it, the right code, nothing on stdout, no traceback."""
    assert found.code == code, found.err
    errors = [line for line in found.err.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, found.err
    assert "Traceback" not in found.err
    assert found.out == ""
    for word in words:
        assert word in errors[0]


def files_in(folder: Path) -> list[str]:
    """Every file under a folder, by its path in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
