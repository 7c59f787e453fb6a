"""Runs the stages one after the other, each in a process with a time limit; whatever ends one, the rest still runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from asdm.utils import console
from asdm.utils.record import utc_now
from benchmarks.gpu.process import AGAIN, Job, save_stage
from benchmarks.gpu.records import Files, StageRun, State
from benchmarks.gpu.stages import StageSpec
from benchmarks.script import ROOT

CHILD = [sys.executable, "-m", "benchmarks.gpu.process"]
GRACE_S = 10.0  # for a stage that was told to stop
LEAST_S = 15.0  # below which no stage is begun


def run_stages(
    stages: Sequence[StageSpec], folder: Path, job: Mapping[str, Any], limits: Mapping[str, float], budget_s: float
) -> None:
    """Run what is not settled yet; `job` has the fields of a `Job` that all stages share.

    Raises ValueError where a stage cannot start, KeyboardInterrupt when told to stop.
    """
    began = time.monotonic()
    files = Files(folder, {stage.name: stage.file for stage in stages})
    with _terminated_as_interrupted():
        for place, stage in enumerate(stages, 1):
            left = budget_s - (time.monotonic() - began)
            limit = min(limits[stage.name], left)
            title = f"{place} of {len(stages)}, {stage.name} ({stage.title})"
            if _is_settled(files.stage(stage.name)):
                console.say(f"{title}: done before")
            elif left < min(LEAST_S, budget_s / 2):
                console.say(f"{title}: left out, {left:.0f} s of {budget_s:.0f} s are left; run it again to resume")
            else:
                most = min(left, sum(limits[one.name] for one in stages[place - 1 :]))
                console.say(f"{title}: at most {limit:.0f} s; at most {console.left_text(most)} to go")
                _run(stage, files, job, limit)


def _is_settled(run: StageRun | None) -> bool:
    return run is not None and run.complete and len(run.settled) == len(run.parts)


def _run(spec: StageSpec, files: Files, shared: Mapping[str, Any], limit_s: float) -> None:
    """One stage, in as many processes as it takes: a part that breaks its process does not take the others along."""
    earlier, end = files.stage(spec.name), time.monotonic() + limit_s
    tried = set(earlier.settled if earlier else ())
    while True:
        job = Job(**shared, stage=spec.name, parts=spec.parts, folder=str(files.folder), file=spec.file,
                  skip=tuple(sorted(tried)))  # fmt: skip
        code, ended = _process(job, end)
        if code == console.USAGE:
            raise ValueError(f"the stage {spec.name} could not start; see above.")
        run = files.stage(spec.name) or StageRun(
            started_utc=utc_now(), seconds=limit_s, smoke=job.smoke, environment={}
        )
        if code not in (0, AGAIN):
            run = _close(run, ended, REASON.get(ended, f"its process ended with {code}"))
            save_stage(files, job, run)
        if ended == "interrupted":
            raise KeyboardInterrupt
        others_left = code == AGAIN or (code < 0 and not tried.issuperset(run.parts))
        if not others_left or end - time.monotonic() < LEAST_S:
            break
        tried |= set(run.parts)


REASON: dict[State, str] = {"timed out": "the time limit of the stage ended it", "interrupted": "it was interrupted"}


def _close(run: StageRun, state: State, reason: str) -> StageRun:
    """The stage after its process has gone: the part that ran says why it ended."""
    cut = [name for name, part in run.parts.items() if part.state == "unfinished"]
    for name in cut:
        console.say(f"{name} {state}: {reason}")
    ended = {name: run.parts[name].model_copy(update={"state": state, "message": reason}) for name in cut}
    return run.model_copy(update={"parts": {**run.parts, **ended}, "message": run.message or reason})


def _process(job: Job, end: float) -> tuple[int, State]:
    """Run a job until it ends, or until the time has come; its exit code, and how it ended if it was cut off."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [*CHILD, job.model_dump_json()]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    try:
        return process.wait(max(end - time.monotonic(), 1.0)), "failed"
    except subprocess.TimeoutExpired:
        _end(process, signal.SIGKILL)
        return process.wait(), "timed out"
    except KeyboardInterrupt:
        _end(process, signal.SIGINT)
        return process.wait(), "interrupted"


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and those that it started, and kill what remains after a while."""
    for each in (number, signal.SIGKILL):
        try:
            os.killpg(process.pid, each)
            process.wait(GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM stops the run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def forget(files: Files, stages: Sequence[StageSpec]) -> None:
    """Drop stages from their files."""
    for stage in stages:
        file = files.load(stage.name)
        if file and stage.name in file.stages:
            rest = {name: run for name, run in file.stages.items() if name != stage.name}
            path = files.path(stage.name)
            if rest:
                file.model_copy(update={"stages": rest}).save(path, force=True)
            else:
                path.unlink()


def table(files: Files, stages: Sequence[StageSpec]) -> list[dict[str, str]]:
    """How each stage ended, as rows."""
    rows = []
    for stage in stages:
        run = files.stage(stage.name)
        parts = run.parts if run else {}
        notes = [f"{name} {part.state}: {part.message}" for name, part in parts.items() if part.state != "done"]
        rows.append({
            "stage": stage.name, "state": run.state if run else "not run", "s": f"{run.seconds:.0f}" if run else "",
            "results": str(sum(part.result is not None for part in parts.values())), "notes": "; ".join(notes),
        })  # fmt: skip
    return rows
