"""The folder of a run: which run it belongs to, its lock, and how far the run got."""

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
from asdm.utils.io import brief, check_writable, make_folder, utc_now
from asdm.utils.snapshots import clear_leftovers

RUN, RESULT, LOCK, PAUSED = "run.json", "distill.json", "run.lock", "paused"


def claim_folder(
    folder: Path, wanted: DistillRun, force: bool = False, amend: bool = False, step: int = 0
) -> DistillRun:
    """Create a run's folder, or check that an existing one belongs to this run.

    Raises ValueError for a folder that is not a run's, for the folder of another run, naming the first difference, and
    for changed tuning without `amend`.
    """
    check_folder(folder)
    if not (folder / RUN).exists():
        return _write(folder, wanted)
    existing = DistillRun.load(folder / RUN)
    if force:
        _clear(folder)
        return _write(folder, wanted)
    for key in existing.identity | wanted.identity:
        if existing.identity.get(key) != (value := wanted.identity.get(key)):
            raise ValueError(_another_run(folder, key, existing.identity.get(key), value))
    changed = {key: value for key, value in wanted.tuning.items() if existing.tuning.get(key) != value}
    if not changed:
        return existing
    if not amend:
        key = next(iter(changed))
        raise ValueError(
            f"{folder} was trained with {key} {brief(existing.tuning.get(key))} so far, got {brief(changed[key])}; use "
            "the same value, add --amend to continue with the new one, or choose another output."
        )
    note = {"from_step": step, "created_utc": utc_now(), "was": {key: existing.tuning.get(key) for key in changed}}
    amended = existing.model_copy(update={"tuning": wanted.tuning, "amended": (*existing.amended, note)})
    return _write(folder, amended)


def check_folder(folder: Path) -> None:
    """Raise ValueError for a file, or for a folder that holds something other than a run."""
    if not folder.exists() or (folder / RUN).exists():
        return
    if not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"{folder} exists and is not the folder of a run; choose another output.")


def _another_run(folder: Path, key: str, existing: Any, wanted: Any) -> str:
    if key == "teacher_sha256":
        return (
            f"the teacher has changed since {folder} was started (the hash of its weights was {str(existing)[:12]} and "
            f"is {str(wanted)[:12]}); restore the teacher, or choose another output."
        )
    return (
        f"{folder} holds another run, with {key} {brief(existing)} instead of {brief(wanted)}; choose another output, "
        "or add --force to delete that run."
    )


def _write(folder: Path, run: DistillRun) -> DistillRun:
    run.save(folder / RUN, force=True)
    return run


def _clear(folder: Path) -> None:
    """Empty a run's folder but for `run.json`, so that it remains a run's folder if this is interrupted."""
    for path in [path for path in folder.iterdir() if path.name not in (RUN, LOCK)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raise ValueError where another process holds it. A killed process leaves no lock."""
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
            if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing was trained
                (folder / LOCK).unlink()
                folder.rmdir()


# ---------------------------------------------------------------------------------------------- how far it got


def stage_folder(folder: Path, stage: str) -> Path:
    """The folder of a stage's student."""
    return folder / "stages" / stage


def finished_stages(folder: Path, stages: Sequence[Stage]) -> dict[str, StageResult]:
    """The result of each stage that is done, by its name."""
    files = {stage.name: stage_folder(folder, stage.name) / "stage.json" for stage in stages}
    return {name: StageResult.model_validate_json(file.read_text()) for name, file in files.items() if file.exists()}


def scaler_after(folder: Path, stages: Sequence[Stage]) -> dict[str, Any] | None:
    """The state of fp16's gradient scaler after the last finished one of some stages, with which the next begins."""
    return next((result.scaler for result in reversed(finished_stages(folder, stages).values()) if result.scaler), None)


def step_reached(folder: Path, recipe: ResolvedRecipe) -> int:
    """The last step, counted over all stages, that a checkpoint or a finished stage holds."""
    reached = start = 0
    for stage in recipe.stages:
        checkpoint = snapshots.newest(folder / "checkpoints" / stage.name)
        if checkpoint:
            reached = start + checkpoint.step
        if stage_folder(folder, stage.name).exists():
            reached = start + stage.steps
        start += stage.steps
    return reached


def check_not_passed(folder: Path, recipe: ResolvedRecipe, until: int | None) -> None:
    """Raise ValueError where the run is already past the step at which it should pause."""
    if until is not None and (reached := step_reached(folder, recipe)) > until:
        raise ValueError(f"{folder} has reached step {reached}; it cannot pause at step {until} any more.")


def finished_result(folder: Path, stages: Sequence[Stage]) -> DistillResult | None:
    """The result of a run whose stages are all done, or None."""
    path = folder / RESULT
    result = DistillResult.load(path) if path.exists() else None
    return result if result and len(result.stages) == len(stages) else None


def publish_student(stage: Path, folder: Path) -> None:
    """Link a stage's student into the run's folder, its config last, so that an incomplete one cannot be loaded."""
    names = sorted({path.name for path in stage.iterdir()} - {"stage.json", "student_sha256"})
    for name in sorted(names, key=lambda name: name == "config.json"):
        temporary = folder / f".{name}.publish0"
        temporary.unlink(missing_ok=True)
        try:
            os.link(stage / name, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(stage / name, temporary)
        os.replace(temporary, folder / name)
