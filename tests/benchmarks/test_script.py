"""What the benchmarks share: a function called in a fresh process, and a command line from its parameters."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from asdm.measure.machine import KEEP_MEMORY
from asdm.utils.record import Frozen
from benchmarks import script


class Answer(Frozen):
    """What a function of this module returns."""

    process: int
    keeps: dict[str, str]
    words: tuple[str, ...]


def answer(*words: str) -> Answer:
    keeps = {name: os.environ[name] for name in KEEP_MEMORY if name in os.environ}
    return Answer(process=os.getpid(), keeps=keeps, words=words)


def fail() -> dict[str, Any]:
    raise ValueError("no such thing")


def test_a_function_returns_its_value_from_a_fresh_process_with_its_own_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = script.in_fresh_process(answer, "a b", "c", keep_memory=True)
    assert (kept.words, kept.keeps) == (("a b", "c"), KEEP_MEMORY)
    assert kept.process != os.getpid()
    monkeypatch.setenv(next(iter(KEEP_MEMORY)), "1")
    assert script.in_fresh_process(answer).keeps == {}


def test_an_error_in_a_fresh_process_is_reported() -> None:
    with pytest.raises(ValueError, match="ValueError: no such thing"):
        script.in_fresh_process(fail)


def test_turns_tell_how_many_are_done_and_the_time_left() -> None:
    reports: list[tuple[str, int, float | None]] = []
    assert list(script.in_turn("abc", "turns", lambda *progress: reports.append(progress))) == ["a", "b", "c"]
    assert [(label, done, eta_s is None) for label, done, eta_s in reports] == [
        ("turns", 0, True), ("turns", 1, False), ("turns", 2, False),
    ]  # fmt: skip


def test_a_file_to_write_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(output: script.JsonFile, threads: script.Threads = None) -> None:
        raise AssertionError("it ran without its output")

    main.__annotations__ = {"output": script.JsonFile, "threads": script.Threads}
    monkeypatch.setattr(sys, "argv", ["main"])
    with pytest.raises(SystemExit) as caught:
        script.run(main)
    assert caught.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    text = "a <!-- x -->old<!-- /x --> b <!-- y -->kept<!-- /y -->"
    assert script.between_marks(text, "x", "new") == "a <!-- x -->new<!-- /x --> b <!-- y -->kept<!-- /y -->"


def test_the_readme_lists_every_benchmark() -> None:
    folder = script.ROOT / "benchmarks"
    text = (folder / "README.md").read_text(encoding="utf-8")
    modules = [path.stem for path in folder.glob("*.py") if path.name != "__init__.py"]
    packages = [path.parent.name for path in folder.glob("*/__init__.py")]
    scripts = [path.name for path in folder.glob("*.sh")]
    assert [name for name in (*modules, *packages, *scripts) if name not in text] == []
