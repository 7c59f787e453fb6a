"""A run: all stages of a recipe in order, resuming from where an earlier call stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from asdm.data.choice import data_for
from asdm.data.identity import identity
from asdm.distill import held_out, losses, run_folder
from asdm.distill.checkpoint import save_paused_student
from asdm.distill.context import (
    ProgressCallback,
    TrainContext,
    TrainProgress,
    is_main_process,
    load_context,
    make_accelerator,
)
from asdm.distill.dry_run import preview_stage
from asdm.distill.losses.perceptual import vgg_for
from asdm.distill.memory import check_memory
from asdm.distill.precision import torch_settings
from asdm.distill.settings import DistillSettings
from asdm.distill.setup import make_student
from asdm.distill.stages import Recipe, ResolvedRecipe, check_pause, end_step, resolve_recipe, select_stages
from asdm.distill.trainer import train_stage
from asdm.measure import machine
from asdm.models.settings import BESIDE_THE_UNET
from asdm.models.sources import weights_of
from asdm.models.units import INDEX
from asdm.records.distill import DistillResult, DistillRun, StageResult
from asdm.records.units import Units
from asdm.utils import console
from asdm.utils.record import utc_now

IDENTITY = ("split", "steps", "seed", "size", "batch", "dtype", "optimizer", "vgg")
TUNING = (
    "learning_rate", "schedule", "warm_up", "weight_decay", "clip", "ema", "min_snr", "caption_dropout", "balance",
    "spike",
)  # fmt: skip


def distill(
    source: str,
    teacher: str | None,
    output: Path,
    settings: DistillSettings,
    recipe: Recipe,
    only: str | None = None,
    force: bool = False,
    amend: bool = False,
    on_progress: ProgressCallback = lambda _: None,
    command: str = "asdm distill",
    until: int | None = None,
    first_stage_from: Path | None = None,
) -> DistillResult:
    """Train a recipe's stages in the folder `output`, resuming an earlier call with the same arguments.

    The last stage's student becomes a diffusers folder in `output` itself, each stage's student one in
    `output/stages/NAME`. `only` trains one stage. `until` pauses the run after that step, counted over all stages: the
    plan's student at that step is saved in `output/paused`, and a later call ends with the same bits as without the
    pause. `first_stage_from` is the folder of a run whose first stage is the same, which is copied instead of being
    trained again. Raises ValueError for arguments that do not fit, the folder of another run, a changed teacher or a
    full disk; Diverged for a loss that is not finite or spikes; KeyboardInterrupt, after a checkpoint, when told to
    stop.
    """
    resolved = resolve_recipe(source, teacher, settings, recipe)
    settings = _completed(settings, resolved, {} if force else run_folder.identity_in(output))
    run_folder.check_folder(output, force, (source, teacher, settings.weights, settings.vgg, settings.units))
    if not force:
        resolved = run_folder.with_more_steps(output, resolved)
    selected = select_stages(resolved.stages, only)
    if until is not None:
        check_pause(resolved.stages, until, only)
    accelerator = make_accelerator(settings)
    done = run_folder.finished_stages(output, resolved.stages)
    on_progress(TrainProgress("counting memory", 0, settings.steps))
    unfinished = [stage for stage in selected if force or stage.name not in done]
    if amend and not unfinished:
        raise ValueError(
            f"{output} is finished, so nothing would be trained with what --amend changes; choose more --steps or "
            "another output."
        )
    check_memory(resolved, unfinished, settings, accelerator.num_processes, preview_stage)
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    lock = run_folder.run_lock(output) if accelerator.is_main_process else nullcontext()
    with lock, torch_settings(settings):
        context = load_context(resolved, settings, output, accelerator, on_progress)
        held_out.check(context)
        if accelerator.is_main_process:
            before = {} if force else run_folder.identity_in(output)
            record, step = _run_record(context, command, before), run_folder.step_reached(output, resolved)
            first = resolved.stages[0]
            other = first_stage_from if force or first.name not in done else None
            if other:
                run_folder.check_first_stage(other, record, first)
            run_folder.claim_folder(output, record, force, amend, step)
            if other:
                run_folder.take_first_stage(output, other, first)
        accelerator.wait_for_everyone()
        if not amend and (earlier := run_folder.finished_result(output, resolved.stages)):
            return earlier
        results = run_folder.finished_stages(output, resolved.stages)
        run_folder.check_not_passed(output, resolved, until)
        for stage in selected:
            if stage.name not in results:
                stage_result = train_stage(context, stage, until)
                if stage_result is None:
                    break
                results[stage.name] = stage_result
            if until == end_step(resolved.stages, stage) and stage is not resolved.stages[-1]:
                save_paused_student(context, stage, make_student(context, resolved.stages[-1])[0], until)
                break
        finished = [results[stage.name] for stage in resolved.stages if stage.name in results]
        result = _finish(context, finished, until)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def _completed(settings: DistillSettings, recipe: ResolvedRecipe, before: Mapping[str, Any]) -> DistillSettings:
    """The settings with what was left to the run so far, the teacher and the data: weights, data set, VGG."""
    weights = weights_of(recipe.family, settings, "asdm distill")
    data = data_for(settings.data or before.get("data"), recipe.family, "asdm distill")
    vgg = settings.vgg or before.get("vgg") or vgg_for(data)
    completed = replace(settings, weights=weights, data=data, vgg=vgg)
    for name in losses.with_network(name for stage in recipe.stages for name in stage.weights):
        setting = losses.network_setting(name)
        if setting and getattr(settings, setting) is None and is_main_process():
            network = losses.load(name).network_for(completed)
            console.say(f"The {name} term of {data} takes {network} (--{setting} names another).")
    return completed


def _run_record(context: TrainContext, command: str, before: Mapping[str, Any]) -> DistillRun:
    """The run's identity and tuning, to be compared with its folder's `run.json`, whose identity is `before`.

    A shard that is broken when a run begins is left out of it, and may take part once it is repaired.
    """
    settings = asdict(context.settings)
    facts = {
        "plan_sha256": context.recipe.plan.sha256(),
        "teacher": context.recipe.family.title,
        "data": context.settings.data,
        **identity(context.data, before, repairable=True),
        **{key: settings[key] for key in IDENTITY},
        **{key: settings[key] for key in (*BESIDE_THE_UNET, "lora") if settings[key] is not None},
        "stages": [{k: v for k, v in s.fingerprint().items() if k != "weights"} for s in context.recipe.stages],
        "teacher_sha256": context.teacher_sha256,
        **({"units_sha256": Units.load(Path(library) / INDEX).sha256()} if (library := context.settings.units) else {}),
    }
    tuning = {key: settings[key] for key in TUNING} | {
        f"{run_folder.WEIGHTS_OF}{stage.name}": dict(stage.weights) for stage in context.recipe.stages
    }
    return DistillRun(
        created_utc=utc_now(),
        command=command,
        identity=facts,
        tuning=tuning,
        environment=machine.environment(str(context.accelerator.device), torch.get_num_threads()),
    )


def _finish(context: TrainContext, results: list[StageResult], until: int | None = None) -> DistillResult:
    """Publish the last stage's student in the run's folder, once all stages are done, and write the result."""
    recipe, last = context.recipe, context.recipe.stages[-1].name
    complete = len(results) == len(recipe.stages)
    if context.accelerator.is_main_process and complete:
        run_folder.publish_student(run_folder.stage_folder(context.folder, last), context.folder)
        shutil.rmtree(context.folder / run_folder.PAUSED, ignore_errors=True)
    sha256_file = run_folder.stage_folder(context.folder, last) / "student_sha256"
    result = DistillResult(
        created_utc=utc_now(),
        name=recipe.plan.name,
        family=recipe.family.name,
        data=str(context.settings.data),
        seed=context.settings.seed,
        plan_sha256=recipe.plan.sha256(),
        student_sha256=sha256_file.read_text().strip() if complete else None,
        stages=tuple(results),
        paused_at=None if complete else until,
        held_out=held_out.measure(context) if complete and context.accelerator.is_main_process else None,
    )
    if context.accelerator.is_main_process:
        result.save(context.folder / run_folder.RESULT, force=True)
    return result
