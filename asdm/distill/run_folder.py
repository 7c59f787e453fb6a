"""A folder that one run owns: what it is being trained for, its lock, and how far it got."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asdm.distill.stages import ResolvedRecipe, Stage
from asdm.records.distill import DistillResult, DistillRun, StageResult
from asdm.utils import locks, snapshots
from asdm.utils.io import brief, check_writable, make_folder, utc_now, write_whole
from asdm.utils.snapshots import clear_leftovers

RUN, LOCK = "run.json", "run.lock"
RESULT = "distill.json"
PAUSED = "paused"


def claim_folder(
    folder: Path, wanted: DistillRun, force: bool = False, amend: bool = False, step: int = 0
) -> DistillRun:
    """Take a folder for a run, or go on in one that is this run's own.

    Raises ValueError for what is not a run's folder, for another run's, naming the first thing that differs, and for
    other tuning without `amend`.
    """
    check_folder(folder)
    if not (folder / RUN).exists():
        return _write(folder, wanted)
    found = DistillRun.load(folder / RUN)
    if force:
        _clear(folder)
        return _write(folder, wanted)
    for key, value in wanted.identity.items():
        if found.identity.get(key) != value:
            raise ValueError(_another(folder, key, found.identity.get(key), value))
    changed = {key: value for key, value in wanted.tuning.items() if found.tuning.get(key) != value}
    if not changed:
        return found
    if not amend:
        key = next(iter(changed))
        raise ValueError(
            f"{folder} is trained with {key} {brief(found.tuning.get(key))}, and not {brief(changed[key])}; give the "
            "same, add --amend to go on with the new one, or name another output."
        )
    note = {"from_step": step, "created_utc": utc_now(), "was": {key: found.tuning.get(key) for key in changed}}
    now = found.model_copy(update={"tuning": wanted.tuning, "amended": (*found.amended, note)})
    return _write(folder, now)


def check_folder(folder: Path) -> None:
    """Raises ValueError for a file, or a folder with other things than a run in it."""
    if not folder.exists() or (folder / RUN).exists():
        return
    if not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"{folder} exists and holds no run to go on with; name another output.")


def _another(folder: Path, key: str, found: Any, wanted: Any) -> str:
    if key == "teacher_sha256":
        return (
            f"the teacher has changed since {folder} was begun (its weights hash to {str(wanted)[:12]}, and not "
            f"{str(found)[:12]}); put the teacher back, or name another output."
        )
    return (
        f"{folder} holds another run: its {key} is {brief(found)}, and not {brief(wanted)}; name another output, "
        "or add --force to throw that run away."
    )


def _write(folder: Path, run: DistillRun) -> DistillRun:
    make_folder(folder)
    write_whole(folder / RUN, run.to_json(), force=True)
    return run


def _clear(folder: Path) -> None:
    """Empty a run's folder, its name plate last, so that a stop in between leaves a run's folder."""
    for path in [path for path in folder.iterdir() if path.name not in (RUN, LOCK)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Nobody else trains in `folder` meanwhile; a killed process leaves no lock. Raises ValueError where one does."""
    check_writable(folder / LOCK, force=True)
    make_folder(folder)
    with (folder / LOCK).open("a+") as owner:
        if not locks.lock(owner.fileno(), wait=False):
            owner.seek(0)
            raise ValueError(f"{folder} is being trained by process {owner.read().strip() or '?'}; wait for it.")
        owner.truncate(0)
        owner.write(str(os.getpid()))
        owner.flush()
        clear_leftovers(folder)
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it
                (folder / LOCK).unlink()
                folder.rmdir()


# ---------------------------------------------------------------------------------------------- how far it got


def stage_folder(folder: Path, stage: str) -> Path:
    """Where a stage's student is kept in the run's folder."""
    return folder / "stages" / stage


def finished_stages(folder: Path, stages: Sequence[Stage]) -> Iterator[tuple[str, StageResult]]:
    """The stages that are done: their students are whole folders."""
    for stage in stages:
        path = stage_folder(folder, stage.name) / "stage.json"
        if path.exists():
            yield stage.name, StageResult.model_validate_json(path.read_text())


def step_reached(folder: Path, recipe: ResolvedRecipe) -> int:
    """The last step of the whole run that a checkpoint or a finished stage holds."""
    reached = start = 0
    for stage in recipe.stages:
        found = snapshots.newest(folder / "checkpoints" / stage.name)
        if found:
            reached = start + found.step
        if stage_folder(folder, stage.name).exists():
            reached = start + stage.steps
        start += stage.steps
    return reached


def check_not_passed(folder: Path, recipe: ResolvedRecipe, until: int | None) -> None:
    """Raises ValueError where the run has gone beyond the step at which it is to pause."""
    if until is not None and (reached := step_reached(folder, recipe)) > until:
        raise ValueError(f"{folder} has been trained to step {reached}, which is beyond {until}; there is no way back.")


def finished_result(folder: Path, stages: Sequence[Stage]) -> DistillResult | None:
    """What was done by a run whose stages are all done, or None."""
    path = folder / RESULT
    done = DistillResult.load(path) if path.exists() else None
    return done if done and len(done.stages) == len(stages) else None


def publish_student(stage: Path, folder: Path) -> None:
    """Put a stage's student where users look for it; its config comes last, so that half of it loads nowhere."""
    names = sorted({path.name for path in stage.iterdir()} - {"stage.json", "student_sha256"})
    for name in sorted(names, key=lambda name: name == "config.json"):
        temporary = folder / f".{name}.publish0"
        temporary.unlink(missing_ok=True)
        try:
            os.link(stage / name, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(stage / name, temporary)
        os.replace(temporary, folder / name)
