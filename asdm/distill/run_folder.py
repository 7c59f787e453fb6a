"""The folder of a run: which run it belongs to, its lock, and how far the run got."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asdm.distill.stages import ResolvedRecipe, Stage, end_step
from asdm.plan.edits import PruningPlan
from asdm.records.distill import DistillResult, DistillRun, StageResult
from asdm.utils import inputs, locks, snapshots
from asdm.utils.io import check_writable, disk_errors, make_folder, whole_folder, write_whole
from asdm.utils.record import brief, first_problem, read_json, utc_now
from asdm.utils.snapshots import clear_leftovers

RUN, RESULT, LOCK, LOG, PAUSED = "run.json", "distill.json", "run.lock", "log.jsonl", "paused"
WEIGHTS_OF = "weights of "  # before a stage's name: its loss terms, in a run's tuning
STUDENT = ("config.json", "diffusion_pytorch_model*", "plan.json", "build.json", "diff.txt")
WRITTEN = (  # into a run's folder: all that --force deletes
    RUN, RESULT, LOCK, LOG, "adapter.safetensors", *STUDENT,
    *(f"stages/*/{name}" for name in (*STUDENT, "stage.json", "student_sha256")),
    *(f"{PAUSED}/{name}" for name in (*STUDENT, "paused.json")),
    "checkpoints/*/step-*/*.safetensors", "checkpoints/*/step-*/state.json", "validation/step-*.png",
    "tensorboard/events.out.tfevents.*",
)  # fmt: skip
LEFTOVER = ".*.????????"  # of a killed process


def claim_folder(
    folder: Path, wanted: DistillRun, force: bool = False, amend: bool = False, step: int = 0
) -> DistillRun:
    """Create a run's folder, or check that an existing one belongs to this run.

    Raises ValueError for a folder that is not a run's, for the folder of another run, naming the first difference, and
    for changed tuning without `amend`.
    """
    check_folder(folder, force)
    if not (folder / RUN).exists():
        return _write(folder, wanted)
    existing = DistillRun.load(folder / RUN)
    if force:
        _clear(folder)
        return _write(folder, wanted)
    longer = _is_longer(existing, wanted)
    for key in existing.identity | wanted.identity:
        if longer and key in ("steps", "stages"):
            continue
        if key == "data" and existing.identity.get("data_fingerprint") == wanted.identity.get("data_fingerprint"):
            continue  # the same pictures, whatever they are called
        if existing.identity.get(key) != (value := wanted.identity.get(key)):
            raise ValueError(_another_run(folder, key, existing.identity.get(key), value))
    changed = {key: value for key, value in wanted.tuning.items() if existing.tuning.get(key) != value}
    if not changed and not longer:
        return existing
    if changed and not amend:
        key = next(iter(changed))
        raise ValueError(
            f"{folder} was trained with {key} {brief(existing.tuning.get(key))} so far, got {brief(changed[key])}; use "
            "the same value, add --amend to continue with the new one, or choose another output."
        )
    was = {key: existing.tuning.get(key) for key in changed}
    was |= {"steps": existing.identity["steps"]} if longer else {}
    note = {"from_step": step, "created_utc": utc_now(), "was": was}
    changes = {"identity": wanted.identity, "tuning": wanted.tuning, "amended": (*existing.amended, note)}
    return _write(folder, existing.model_copy(update=changes))


def _is_longer(existing: DistillRun, wanted: DistillRun) -> bool:
    """Whether a run is the one in its folder with more steps."""
    before, after = (run.identity.get("steps") for run in (existing, wanted))
    if not isinstance(before, int) or not isinstance(after, int) or before >= after:
        return False
    return _stages_but_steps(existing) == _stages_but_steps(wanted)


def _stages_but_steps(run: DistillRun) -> list[dict[str, Any]]:
    stages: Any = run.identity.get("stages", [])
    return [{key: value for key, value in stage.items() if key != "steps"} for stage in stages]


def with_more_steps(folder: Path, recipe: ResolvedRecipe) -> ResolvedRecipe:
    """A recipe whose run in `folder` had fewer steps: stages that it finished keep theirs, the last gets the rest.

    Raises ValueError where the run is finished and the checkpoint that it would resume from was deleted.
    """
    if not (folder / RUN).exists():
        return recipe
    stages: Any = DistillRun.load(folder / RUN).identity.get("stages", [])
    before = {stage["name"]: stage["steps"] for stage in stages}
    *earlier, last = recipe.stages
    if before.keys() != {stage.name for stage in recipe.stages} or sum(before.values()) > end_step(recipe.stages, last):
        return recipe
    finished = [stage.name for stage in recipe.stages if (stage_folder(folder, stage.name) / "stage.json").exists()]
    kept = [replace(stage, steps=before[stage.name]) if stage.name in finished else stage for stage in earlier]
    rest = end_step(recipe.stages, last) - sum(stage.steps for stage in kept)
    continues = last.name in finished and rest > before[last.name]
    if continues and snapshots.newest(folder / "checkpoints" / last.name) is None:
        raise ValueError(
            f"{folder} is finished, and the last checkpoint, from which it would continue to more steps, is gone from "
            f"checkpoints/{last.name}; choose another output."
        )
    return replace(recipe, stages=(*kept, replace(last, steps=rest)))


def identity_in(folder: Path) -> dict[str, Any]:
    """What a folder's run is, or nothing where there is none."""
    return dict(DistillRun.load(folder / RUN).identity) if (folder / RUN).exists() else {}


def check_folder(folder: Path, force: bool = False, named: Iterable[str | None] = ()) -> None:
    """Raise ValueError for a file, or for a folder that holds something other than a run.

    With `force`, what it holds is to be deleted: raises ValueError where an input of the command, one of the `named`
    too, or a file that no run writes is among it.
    """
    if not folder.exists():
        return
    if not (folder / RUN).exists():
        if not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()):
            raise ValueError(f"{folder} exists and is not the folder of a run; choose another output.")
    elif force:
        if held := inputs.held_in(folder, [*filter(None, named), *inputs.names()]):
            raise ValueError(f"{folder} is or holds the input {held}; choose another output.")
        if foreign := next(
            (path for path in sorted(folder.rglob("*")) if not _is_ours(path.relative_to(folder))), None
        ):
            raise ValueError(f"{folder} is not replaced: it holds {foreign}, which this command did not write.")


def _is_ours(path: Path) -> bool:
    """Whether a run writes a file or folder of this name, in its own folder."""
    if any(fnmatch(part, LEFTOVER) for part in path.parts):
        return True
    return any(
        len(path.parts) <= len(parts) and all(map(fnmatch, path.parts, parts))
        for parts in (pattern.split("/") for pattern in WRITTEN)
    )


def _another_run(folder: Path, key: str, existing: Any, wanted: Any) -> str:
    if key == "teacher_sha256":
        return (
            f"the teacher has changed since {folder} was started (the hash of its weights was {str(existing)[:12]} and "
            f"is {str(wanted)[:12]}); restore the teacher, or choose another output."
        )
    if key == "data_fingerprint":
        return (
            f"the data set is not the one with which {folder} was started: its files, sizes or captions, or what is "
            "taken of them, are others; restore it, or choose another output."
        )
    if key == "data_sample":
        return (
            f"the pictures have changed since {folder} was started, though the names of their files are the same; "
            "restore them, or choose another output."
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
        with locks.needed(folder, "choose an output on another disk"):
            free = locks.lock(owner.fileno(), wait=False)
        if not free:
            owner.seek(0)
            process = owner.read().strip()
            who = f"process {process}" if process else "another process"
            raise ValueError(f"{folder} is being trained by {who}; wait for it.")
        with disk_errors(folder / LOCK, every=True):
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
    """The result of each stage that is done, by its name; one that is to have more steps is not."""
    files = {stage.name: stage_folder(folder, stage.name) / "stage.json" for stage in stages}
    results = {name: _stage_result(file) for name, file in files.items() if file.exists()}
    return {stage.name: results[stage.name] for stage in stages if _steps_in(results, stage) == stage.steps}


def _stage_result(file: Path) -> StageResult:
    try:
        return StageResult.model_validate(read_json(file))
    except ValidationError as error:
        raise ValueError(f"{file}: {first_problem(error)}") from None


def _steps_in(results: Mapping[str, StageResult], stage: Stage) -> int | None:
    return results[stage.name].steps if stage.name in results else None


def check_first_stage(source: Path, run: DistillRun, stage: Stage) -> None:
    """Raise ValueError unless this run would repeat another's first stage to the bit: same plan, data, seed, settings.

    The first difference is named. What stands beside the UNet is compared by name.
    """
    if why := _unlike(run, DistillRun.load(source / RUN), source, stage):
        raise ValueError(f"the stage {stage.name} cannot be taken from {source}: {why}.")


def take_first_stage(folder: Path, source: Path, stage: Stage) -> None:
    """Put another run's first stage into this run's folder, as if it had been trained here.

    Lines of its log that come after the stage are dropped when the next one opens the log.
    """
    write_whole(folder / LOG, (source / LOG).read_bytes(), force=True)
    with whole_folder(stage_folder(folder, stage.name)) as copy, disk_errors(copy, every=True):
        for file in stage_folder(source, stage.name).iterdir():
            shutil.copyfile(file, copy / file.name)
    shutil.rmtree(folder / "checkpoints" / stage.name, ignore_errors=True)


def _unlike(run: DistillRun, other: DistillRun, source: Path, stage: Stage) -> str | None:
    """How another run's first stage is unlike this run's, or None."""
    if stage.name not in finished_stages(source, [stage]):
        return f"it has no such stage that is finished after {stage.steps} steps"
    if other.amended:
        return "that run was amended"
    if PruningPlan.load(stage_folder(source, stage.name) / "plan.json").edits != stage.plan.edits:
        return "its student there has another plan"
    theirs, ours = (
        {key: value for key, value in one.identity.items() if key not in ("plan_sha256", "steps", "stages")}
        | {key: value for key, value in one.tuning.items() if not key.startswith(WEIGHTS_OF)}
        | {key: value for key, value in _first_stage(one).items() if key != "plan_sha256"}
        | {"weights": one.tuning.get(f"{WEIGHTS_OF}{stage.name}")}
        for one in (other, run)
    )
    key = next((key for key in theirs | ours if theirs.get(key) != ours.get(key)), None)
    return key and f"it has {key} {brief(theirs.get(key))} instead of {brief(ours.get(key))}"


def _first_stage(run: DistillRun) -> dict[str, Any]:
    stages: Any = run.identity["stages"]
    return stages[0]


def scaler_after(folder: Path, stages: Sequence[Stage]) -> dict[str, Any] | None:
    """The state of fp16's gradient scaler after the last finished one of some stages, with which the next begins."""
    return next((result.scaler for result in reversed(finished_stages(folder, stages).values()) if result.scaler), None)


def step_reached(folder: Path, recipe: ResolvedRecipe) -> int:
    """The last step, counted over all stages, that a checkpoint or a finished stage holds."""
    reached, start, done = 0, 0, finished_stages(folder, recipe.stages)
    for stage in recipe.stages:
        checkpoint = snapshots.newest(folder / "checkpoints" / stage.name)
        if checkpoint:
            reached = start + checkpoint.step
        if stage.name in done:
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
    steps = [stage.steps for stage in stages]
    return result if result and [stage.steps for stage in result.stages] == steps else None


def publish_student(stage: Path, folder: Path) -> None:
    """Link a stage's student into the run's folder, its config last, so that an incomplete one cannot be loaded."""
    names = sorted({path.name for path in stage.iterdir()} - {"stage.json", "student_sha256"})
    for name in sorted(names, key=lambda name: name == "config.json"):
        temporary = folder / f".{name}.publish0"
        temporary.unlink(missing_ok=True)
        with disk_errors(folder / name, (stage / name).stat().st_size, every=True):
            try:
                os.link(stage / name, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(stage / name, temporary)
            os.replace(temporary, folder / name)
