"""Runs the steps of a slim run one after the other; the same call resumes after any stop."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from asdm.cli.slim.estimate import fitting_options, stand_in
from asdm.cli.slim.prepare import Prepared
from asdm.cli.slim.steps import PLAN, STUDENT, Step, steps_of
from asdm.data.identity import FINGERPRINT
from asdm.records.distill import DistillResult
from asdm.records.slim import SlimRun, SlimStep
from asdm.utils.io import make_folder
from asdm.utils.locks import lock, needed, open_lock
from asdm.utils.record import brief, utc_now

RUN, LOCK = "slim.json", "slim.lock"
MAY_CHANGE = ("steps", "max_error", "pictures", "judge", "threads")  # what a later call may ask for otherwise
MODULES = {"asdm": "asdm", "asdm-prof": "asdm_prof"}
Say = Callable[[str], None]


class Failed(Exception):
    """A step ended with an exit code other than 0, whose reason it has said itself."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"the step {step} ended with exit code {code}")
        self.code = code


class WorseThanAsked(Exception):
    """The student's error on held-out pictures is more than the share of the untrained one's that was asked for."""


def slim(prepared: Prepared, folder: Path, say: Say) -> SlimRun:
    """Run what is left of a slim run in `folder`.

    Raises ValueError for a folder of something else, Failed for a step that failed, WorseThanAsked for a student that
    was trained too little.
    """
    if not (folder / PLAN).exists():
        fitting_options(prepared, stand_in(prepared, folder))  # refuses what would not fit, before the first step
    run = _claim(prepared, folder)
    with needed(folder, "choose an output on another disk"):
        handle = open_lock(folder / LOCK)
        free = lock(handle, wait=False)
    try:
        if not free:
            raise ValueError(f"{folder} is being worked on by another process; wait for it.")
        names = [step.name for step in _steps(prepared, folder, run)]
        for number, name in enumerate(names, start=1):
            if name == "distill" and run.training is None:
                run = run.model_copy(update={"training": fitting_options(prepared, str(folder / PLAN))})
                run.save(folder / RUN, force=True)
            step = next(step for step in _steps(prepared, folder, run) if step.name == name)
            if _is_done(step, run):
                say(f"{number} of {len(names)}: {name} is done ({step.output}).")
            else:
                say(f"{number} of {len(names)}: {shlex.join(step.words)}")
                run = _add(run, step, _run(step))
                run.save(folder / RUN, force=True)
            if name == "distill":
                check_error(folder, prepared.settings.max_error, say)
    finally:
        os.close(handle)
    return run


def _steps(prepared: Prepared, folder: Path, run: SlimRun) -> list[Step]:
    training = (*(run.training or ()), *prepared.left_out)
    return steps_of(prepared.checkpoint, prepared.settings, prepared.data, prepared.pictures, folder, training)


def _claim(prepared: Prepared, folder: Path) -> SlimRun:
    """The run of a new folder, or the one that it belongs to; raises ValueError, naming the first difference."""
    path = folder / RUN
    before = SlimRun.load(path).identity if path.exists() else {}
    known = prepared.known_by(before if FINGERPRINT in before else None)  # earlier versions knew the name alone
    identity: dict[str, Any] = {"checkpoint": prepared.checkpoint, **asdict(prepared.settings), "data": prepared.data}
    wanted = SlimRun(created_utc=utc_now(), identity=identity | known)
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists and is not the folder of a slim run; choose another output.")
        make_folder(folder)
        wanted.save(path)
        return wanted
    run = SlimRun.load(path)
    for key in identity:
        was, now = run.identity.get(key), wanted.identity[key]
        if was != now and key not in MAY_CHANGE and not (key == "data" and FINGERPRINT in before):
            raise ValueError(
                f"{folder} was begun with {key} {brief(was)}, not {brief(now)}; use the same, or another output."
            )
    if FINGERPRINT in before and any(before.get(key) != value for key, value in known.items()):
        raise ValueError(
            f"{folder} was begun with other data than {prepared.data} has now; restore them, or name another output."
        )
    if run.identity != wanted.identity:
        run = run.model_copy(update={"identity": wanted.identity})
        run.save(path, force=True)
    return run


def _is_done(step: Step, run: SlimRun) -> bool:
    """Whether a step has written its file; one whose output grows must have ended with the same words."""
    if step.whole:
        return step.output.exists()
    ended = [done for done in run.steps if done.name == step.name]
    return step.output.exists() and any(_but_data(done.command) == _but_data(step.words) for done in ended)


def _but_data(words: Sequence[str]) -> list[str]:
    """A command without the name of its data set, which may be spelled in several ways."""
    return [word for before, word in pairwise(("", *words)) if before != "--data"]


def _add(run: SlimRun, step: Step, seconds: float) -> SlimRun:
    """The run with a step that has ended; what came after it before is to be done again."""
    before = [done for done in run.steps if done.name != step.name]
    if len(before) < len(run.steps):
        before = before[: [done.name for done in run.steps].index(step.name)]
    return run.model_copy(update={"steps": (*before, SlimStep(name=step.name, command=step.words, seconds=seconds))})


def _run(step: Step) -> float:
    """Run a command in a process of its own, which ends with this one; its seconds."""
    program, *words = step.words
    began = time.monotonic()
    own = {"preexec_fn": _end_with_parent} if sys.platform == "linux" else {}
    with subprocess.Popen([sys.executable, "-m", MODULES[program], *words], **own) as process:  # type: ignore[call-overload]
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal sends it to both; training writes a checkpoint first
            process.wait()
            raise
    if code:
        raise Failed(step.name, code)
    return time.monotonic() - began


def _end_with_parent() -> None:
    """The kernel ends the process with the one that started it, however that ends; on Linux."""
    death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


def check_error(folder: Path, most: float, say: Say) -> None:
    """Say how far the student is from its teacher; raises WorseThanAsked where that is too far."""
    result = DistillResult.load(folder / STUDENT / "distill.json")
    held_out = result.held_out
    assert held_out is not None, "the run holds pictures out"
    share = held_out.error / held_out.untrained if held_out.untrained else 0.0
    summary = (
        f"On {held_out.pictures} held-out pictures the student's error is {held_out.error:.4g}, {share:.0%} of the "
        f"untrained student's"
    )
    if share > most:
        raise WorseThanAsked(
            f"{summary}; at most {most:.0%} was asked. Train it for longer with a larger --steps, which resumes from "
            "here, raise --learning-rate in a new folder, or allow more (--max-error)."
        )
    say(f"{summary} (at most {most:.0%} was asked).")


def lines_of(steps: Sequence[Step]) -> list[str]:
    """The commands as they would be typed."""
    return [shlex.join(step.words) for step in steps]
