"""Commands that are killed at random moments (`make kills`): no half file, no leftover, no child, the same result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from tests import children
from tests.commands import files_in

KILLS = int(os.environ.get("KILLS", "20"))
BEFORE = Path(__file__).parent / "fixtures" / "before_the_move"
PROFILE, PLAN = BEFORE / "records" / "profile.json", BEFORE / "records" / "plan.json"
TEACHER = BEFORE / "teacher"
NOW = ("created_utc", "command", "environment")  # of this run, not of what was found
# Program and words of each command; what of its result is the same every time, by the end of its name.
COMMANDS: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "profile": (["asdm-prof", "profile", TEACHER, "--time-budget", 1, "-o", "out/profile.json"], ()),
    "plan": (["asdm-prof", "plan", "--budget", "0.9", "--profile", PROFILE, "-o", "out/plan.json"], ("plan.json",)),
    "report": (["asdm-prof", "report", PROFILE, "--format", "html,csv", "-o", "out"], ("report.html", "units.csv")),
    "build": (["asdm", "build", PLAN, "--teacher", TEACHER, "-o", "out"], (".safetensors", "config.json", "plan.json")),
    "export": (["asdm", "export", TEACHER, "--to", "onnx", "-o", "out"], ("model.onnx",)),
    "cache": (["asdm", "cache", f"folder:{BEFORE / 'photos'}", "--teacher", TEACHER, "--per-shard", 2, "-o", "out"],
              (".safetensors", "cache.json")),
    "search": (["asdm-prof", "search", TEACHER, "--profile", PROFILE, "--budget", "0.95", "--data", "emoji",
                *("--candidates", 2, "--rungs", 1, "--steps", 2, "--batch", 2, "--prompts", 4),
                *("--draw-steps", 1, "--time-budget", 1, "-o", "out")], ()),
}  # fmt: skip


@pytest.fixture(params=COMMANDS)
def command(request: Any, tmp_path: Path, monkeypatch: Any) -> Any:
    """Starts the command in a folder of its own; what it says goes to `console` there."""
    (program, *words), same = COMMANDS[request.param]

    def start(folder: Path, *more: str) -> Any:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        in_place = [folder / word if str(word).startswith("out") else word for word in words]
        return children.start([*in_place, *more], folder / "console", program=program)

    return start, same


def check_whole(output: Path) -> None:
    """Every file under its own name can be read to its end."""
    for path in output.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(output).parts):
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as stream:
                    assert [stream.get_tensor(name) for name in stream.keys()]  # noqa: SIM118


def comparable(path: Path) -> Any:
    """A file's content without what tells of its run alone."""
    if path.suffix != ".json":
        return path.read_bytes()
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in NOW}


def children_of(process: Any) -> list[psutil.Process]:
    """The processes that a command has started; none of one that has just ended."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_random_kills_leave_nothing_half(command: Any, tmp_path: Path) -> None:
    start, same = command
    began = time.monotonic()
    assert children.ended(start(tmp_path / "whole")) == 0, (tmp_path / "whole" / "console").read_text()
    seconds, chance, killed = time.monotonic() - began, random.Random(0), 0
    folder = tmp_path / "killed"
    for _ in range(KILLS):
        process = start(folder)
        time.sleep(chance.uniform(0, 0.9 * seconds))
        family = children_of(process)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        check_whole(folder / "out")
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
        if process.exitcode in (0, 2):  # it was through then or before: from the start again, and killed earlier
            shutil.rmtree(folder / "out")
            seconds *= 0.8
    assert killed
    time.sleep(1.1)  # leftovers younger than a second may be a living process's
    told = folder / "console"
    assert children.ended(start(folder)) == 0 or "exists; name another output" in told.read_text(), told.read_text()
    check_whole(folder / "out")
    found, expected = files_in(folder / "out"), files_in(tmp_path / "whole" / "out")
    assert not [name for name in found if Path(name).name.startswith(".")]
    assert not list((folder).glob(".*"))
    for name in expected if same else ():
        assert name in found
        if name.endswith(same):
            assert comparable(folder / "out" / name) == comparable(tmp_path / "whole" / "out" / name), name
