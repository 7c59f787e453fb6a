"""A run: all stages of a recipe, one after the other, from where an earlier call left off."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from asdm.data import datasets
from asdm.distill.checkpoint import keep_paused
from asdm.distill.context import Classroom, Watch, enter, make_accelerator
from asdm.distill.run_folder import (
    PAUSED,
    RESULT,
    claim,
    finished,
    folder_of,
    locked,
    publish,
    refuse_earlier,
    refuse_foreign,
    results_of,
    step_reached,
)
from asdm.distill.settings import DistillSettings
from asdm.distill.setup import make_student
from asdm.distill.stages import Recipe, check_pause, chosen_stages, ends_at, plan_course
from asdm.distill.trainer import run_stage
from asdm.measure import machine
from asdm.records.distill import DistillResult, DistillRun, StageResult
from asdm.utils.io import utc_now

IDENTITY = ("split", "steps", "seed", "size", "batch", "dtype", "optimizer", "vgg")
TUNING = (
    "learning_rate", "schedule", "warm_up", "weight_decay", "clip", "ema", "min_snr", "caption_dropout", "balance",
    "spike",
)  # fmt: skip


def distil(
    source: str,
    teacher: str,
    output: Path,
    settings: DistillSettings,
    recipe: Recipe,
    only: str | None = None,
    force: bool = False,
    amend: bool = False,
    watch: Watch = lambda _: None,
    command: str = "asdm distill",
    until: int | None = None,
) -> DistillResult:
    """Run a recipe's stages in `output`, from where an earlier call of the same left off; returns what was done.

    The last stage's student is a diffusers folder in `output` itself, every stage's one in `output/stages/NAME`. With
    `only`, one stage is run. With `until`, the run pauses after that step of all stages together: what a student of
    the plan is by then lies in `output/paused`, and a later call goes on to the same bits as without the pause.
    Raises ValueError for what does not fit, another run's folder, a changed teacher, or a full disk, Diverged for a
    loss that is no number or leaps; KeyboardInterrupt after a checkpoint where it was asked to stop.
    """
    course = plan_course(source, teacher, settings, recipe)
    chosen = chosen_stages(course.stages, only)
    if until is not None:
        check_pause(course.stages, until, only)
    refuse_foreign(output)
    accelerator = make_accelerator(settings)
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    lock = locked(output) if accelerator.is_main_process else nullcontext()
    with lock:
        room = enter(course, settings, output, accelerator, watch)
        if accelerator.is_main_process:
            claim(output, _record(room, command), force, amend, step_reached(output, course))
        accelerator.wait_for_everyone()
        if not amend and (done := finished(output, course.stages)):
            return done
        results = dict(results_of(output, course.stages))
        refuse_earlier(output, course, until)
        for stage in chosen:
            if stage.name not in results:
                found = run_stage(room, stage, until)
                if found is None:
                    break
                results[stage.name] = found
            if until == ends_at(course.stages, stage) and stage is not course.stages[-1]:
                keep_paused(room, stage, make_student(room, course.stages[-1])[0], until)
                break
        result = _conclude(room, [results[stage.name] for stage in course.stages if stage.name in results], until)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def _record(room: Classroom, command: str) -> DistillRun:
    """What this run is, to be compared with what its folder says."""
    settings = asdict(room.settings)
    identity = {
        "plan_sha256": room.course.plan.sha256(),
        "teacher": room.course.family.title,
        "data": room.settings.data,
        "data_fingerprint": datasets.fingerprint(room.data),
        **{key: settings[key] for key in IDENTITY},
        "stages": [{k: v for k, v in s.described().items() if k != "weights"} for s in room.course.stages],
        "teacher_sha256": room.teacher_sha256,
    }
    tuning = {key: settings[key] for key in TUNING} | {
        f"weights of {stage.name}": dict(stage.weights) for stage in room.course.stages
    }
    return DistillRun(
        created_utc=utc_now(),
        command=command,
        identity=identity,
        tuning=tuning,
        environment=machine.environment(str(room.accelerator.device), torch.get_num_threads()),
    )


def _conclude(room: Classroom, results: list[StageResult], until: int | None = None) -> DistillResult:
    """The last stage's student takes its place in the run's own folder; what is known of all stages is written."""
    course, last = room.course, room.course.stages[-1].name
    whole = len(results) == len(course.stages)
    if room.accelerator.is_main_process and whole:
        publish(folder_of(room.folder, last), room.folder)
        shutil.rmtree(room.folder / PAUSED, ignore_errors=True)
    student = folder_of(room.folder, last) / "student_sha256"
    result = DistillResult(
        created_utc=utc_now(),
        name=course.plan.name,
        family=course.family.name,
        data=room.settings.data,
        seed=room.settings.seed,
        plan_sha256=course.plan.sha256(),
        student_sha256=student.read_text().strip() if whole else None,
        stages=tuple(results),
        paused_at=None if whole else until,
    )
    if room.accelerator.is_main_process:
        result.save(room.folder / RESULT, force=True)
    return result
