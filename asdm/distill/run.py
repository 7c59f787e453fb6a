"""A run: all stages of a recipe, one after the other, from where an earlier call left off."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from asdm.data import datasets
from asdm.distill.checkpoint import save_paused_student
from asdm.distill.context import ProgressCallback, TrainContext, load_context, make_accelerator
from asdm.distill.run_folder import (
    PAUSED,
    RESULT,
    check_folder,
    check_not_passed,
    claim_folder,
    finished_result,
    finished_stages,
    publish_student,
    run_lock,
    stage_folder,
    step_reached,
)
from asdm.distill.settings import DistillSettings
from asdm.distill.setup import make_student
from asdm.distill.stages import Recipe, check_pause, end_step, resolve_recipe, select_stages
from asdm.distill.trainer import train_stage
from asdm.measure import machine
from asdm.records.distill import DistillResult, DistillRun, StageResult
from asdm.utils.io import utc_now

IDENTITY = ("split", "steps", "seed", "size", "batch", "dtype", "optimizer", "vgg")
TUNING = (
    "learning_rate", "schedule", "warm_up", "weight_decay", "clip", "ema", "min_snr", "caption_dropout", "balance",
    "spike",
)  # fmt: skip


def distill(
    source: str,
    teacher: str,
    output: Path,
    settings: DistillSettings,
    recipe: Recipe,
    only: str | None = None,
    force: bool = False,
    amend: bool = False,
    on_progress: ProgressCallback = lambda _: None,
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
    resolved = resolve_recipe(source, teacher, settings, recipe)
    chosen = select_stages(resolved.stages, only)
    if until is not None:
        check_pause(resolved.stages, until, only)
    check_folder(output)
    accelerator = make_accelerator(settings)
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    lock = run_lock(output) if accelerator.is_main_process else nullcontext()
    with lock:
        context = load_context(resolved, settings, output, accelerator, on_progress)
        if accelerator.is_main_process:
            claim_folder(output, _record(context, command), force, amend, step_reached(output, resolved))
        accelerator.wait_for_everyone()
        if not amend and (done := finished_result(output, resolved.stages)):
            return done
        results = dict(finished_stages(output, resolved.stages))
        check_not_passed(output, resolved, until)
        for stage in chosen:
            if stage.name not in results:
                found = train_stage(context, stage, until)
                if found is None:
                    break
                results[stage.name] = found
            if until == end_step(resolved.stages, stage) and stage is not resolved.stages[-1]:
                save_paused_student(context, stage, make_student(context, resolved.stages[-1])[0], until)
                break
        result = _conclude(context, [results[stage.name] for stage in resolved.stages if stage.name in results], until)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def _record(context: TrainContext, command: str) -> DistillRun:
    """What this run is, to be compared with what its folder says."""
    settings = asdict(context.settings)
    identity = {
        "plan_sha256": context.recipe.plan.sha256(),
        "teacher": context.recipe.family.title,
        "data": context.settings.data,
        "data_fingerprint": datasets.fingerprint(context.data),
        **{key: settings[key] for key in IDENTITY},
        "stages": [{k: v for k, v in s.described().items() if k != "weights"} for s in context.recipe.stages],
        "teacher_sha256": context.teacher_sha256,
    }
    tuning = {key: settings[key] for key in TUNING} | {
        f"weights of {stage.name}": dict(stage.weights) for stage in context.recipe.stages
    }
    return DistillRun(
        created_utc=utc_now(),
        command=command,
        identity=identity,
        tuning=tuning,
        environment=machine.environment(str(context.accelerator.device), torch.get_num_threads()),
    )


def _conclude(context: TrainContext, results: list[StageResult], until: int | None = None) -> DistillResult:
    """The last stage's student takes its place in the run's own folder; what is known of all stages is written."""
    resolved, last = context.recipe, context.recipe.stages[-1].name
    whole = len(results) == len(resolved.stages)
    if context.accelerator.is_main_process and whole:
        publish_student(stage_folder(context.folder, last), context.folder)
        shutil.rmtree(context.folder / PAUSED, ignore_errors=True)
    student = stage_folder(context.folder, last) / "student_sha256"
    result = DistillResult(
        created_utc=utc_now(),
        name=resolved.plan.name,
        family=resolved.family.name,
        data=context.settings.data,
        seed=context.settings.seed,
        plan_sha256=resolved.plan.sha256(),
        student_sha256=student.read_text().strip() if whole else None,
        stages=tuple(results),
        paused_at=None if whole else until,
    )
    if context.accelerator.is_main_process:
        result.save(context.folder / RESULT, force=True)
    return result
