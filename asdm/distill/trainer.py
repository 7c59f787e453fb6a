"""The training loop of a stage, its learning rate schedule and the balancing of its loss terms."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace

import torch

from asdm.data import loader
from asdm.distill import losses
from asdm.distill.checkpoint import (
    capture_state,
    ema_weights,
    gather_data_position,
    restore_state,
    save_paused_student,
    save_student,
    student_at_pause,
)
from asdm.distill.context import TrainContext, TrainProgress
from asdm.distill.divergence import (
    Diverged,
    UnreadableData,
    average_over_processes,
    check_losses,
    check_scale,
    next_of_all,
    stop_on_signal,
)
from asdm.distill.logger import (
    GATES_EVERY,
    LOG,
    TrainLogger,
    first_and_last_losses,
    gates_opened,
    last_gates,
    read_log,
    save_validation_images,
)
from asdm.distill.phases import COMPUTE, DATA, ENCODE, StepPhases
from asdm.distill.precision import compiled_units, frozen_dtype, frozen_in
from asdm.distill.run_folder import scaler_after
from asdm.distill.sampling import prepared, task_inputs
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.setup import make_ema, make_objective, make_optimizer, make_student
from asdm.distill.stages import Stage
from asdm.distill.task import DistillationTask
from asdm.measure import clocks
from asdm.models import graft
from asdm.models.loading import weights_sha256
from asdm.records.distill import StageResult
from asdm.utils import console, snapshots

RUNNING_MEAN_DECAY = 0.98  # of the running mean of each term


def train_stage(context: TrainContext, stage: Stage, until: int | None = None) -> StageResult | None:
    """Train one stage to its end, from its last checkpoint where there is one, and save its student.

    Where the run pauses within the stage, after step `until` counted over all stages, the plan's student at that step
    is saved instead, and None is returned.
    """
    accelerator, settings, recipe = context.accelerator, context.settings, context.recipe
    main, world = accelerator.is_main_process, accelerator.num_processes
    number = recipe.stages.index(stage)
    offset = sum(earlier.steps for earlier in recipe.stages[:number])
    end = stage.steps if until is None else min(stage.steps, until - offset)

    # The student and its objective (§2.2). Frozen parts share the teacher's memory.
    student, applied = make_student(context, stage)
    audit = graft.audit(student, context.teacher)
    assert not set(audit.trainable.names) & set(audit.shared_with_teacher.names), "the teacher must not be trained"
    objective, weights = make_objective(context, stage, student, applied)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, settings)
    task = DistillationTask(student.train(), context.teacher, applied, objective)
    model, optimizer = accelerator.prepare(task, optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimized = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert world > 1 or optimized == audit.trainable.params, "the optimizer must hold exactly what the audit lists"
    ema = make_ema(parameters, settings)

    # Resume from the last checkpoint: weights, optimizer moments and EMA. The data resume by the step's number.
    share = loader.Share(accelerator.process_index, world)
    folder = context.folder / "checkpoints" / stage.name
    if main:
        snapshots.prepare(folder)
    accelerator.wait_for_everyone()
    step, data_position, running_means, totals = 0, {}, {}, StageTotals()
    if checkpoint := snapshots.newest(folder):
        restore_state(checkpoint, model, optimizer, ema, parameters, accelerator)
        step, data_position = checkpoint.step, loader.own_part(checkpoint.value("place"), share)
        running_means, totals = dict(checkpoint.value("typical")), StageTotals.saved(checkpoint.value("spent"))
    elif accelerator.scaler and (scaler := scaler_after(context.folder, recipe.stages[:number])):
        accelerator.scaler.load_state_dict(scaler)
    saved, between_steps = step, True
    logger = TrainLogger(context, stage, offset, step) if main else None
    micro = micro_batch(settings, world)
    seed = settings.seed + number
    workers = settings.workers or loader.default_workers()
    batches = loader.batches(context.data, settings.batch, seed, share, step, data_position, workers)
    source = prepared(context, number, step, batches)
    no_caption = context.encoder.nothing()
    frozen = (context.teacher,) if accelerator.distributed_type == "FSDP" else (context.teacher, student)
    pairs = [pair for places in objective.places.values() for pair in places]
    captured = [(unet, [pair[i] for pair in pairs]) for i, unet in enumerate((student, context.teacher))]
    phases = StepPhases(clocks.clock_for(settings.device))
    progress = TrainProgress(stage.name, step, stage.steps, saved_step=step or None)
    began, first = time.monotonic(), step

    def save() -> None:
        nonlocal saved, between_steps
        between_steps = False  # an error in here is no reason to try it again
        position = gather_data_position(accelerator, data_position)
        tensors, plain = capture_state(model, optimizer, ema, parameters, accelerator)
        if main:
            spent = asdict(totals.with_phases(phases.seconds))
            state = {"place": position, "typical": running_means, "spent": spent, **plain}
            snapshots.write(folder, step, tensors, state, settings.keep)
        saved, between_steps = step, True

    try:
        with (
            frozen_in(frozen_dtype(settings), *frozen),
            compiled_units(*(captured if settings.compile else ())),
            loader.ahead(source) as next_batch,
            stop_on_signal() as stop_requested,
        ):
            last_saved = time.monotonic()
            while step < end:
                started = time.perf_counter()

                # Images and captions, encoded; noise and timesteps, seeded by each image's position.
                phases.enter(DATA)
                batch, collated, random_inputs = next_of_all(next_batch, accelerator)
                phases.enter(ENCODE)
                encoded, random_inputs = context.encoder.encode(collated), random_inputs.to(accelerator.device)
                phases.enter(COMPUTE)
                learning_rate = learning_rate_at(settings, stage.steps, step)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate

                # With --balance, scale each term to the first one's size; a forward without gradients gives the start.
                parts = [range(i, min(i + micro, len(encoded))) for i in range(0, len(encoded), micro)]
                if settings.balance and not weights.keys() <= running_means.keys():  # --amend may add terms
                    with torch.no_grad():
                        probe = model(*task_inputs(parts[0], encoded, random_inputs, no_caption, context))
                    means = {n: t.mean() for n, t in probe.items()}
                    running_means = average_over_processes(accelerator, means, [])[0] | running_means
                factors = balance_weights(weights, running_means) if settings.balance else weights

                # Forward of teacher and student, and backward, by micro-batch; gradients are synchronised at the last.
                sums: dict[str, torch.Tensor] = {}
                for part in parts:
                    inputs = task_inputs(part, encoded, random_inputs, no_caption, context)
                    with accelerator.no_sync(model) if part is not parts[-1] else nullcontext():
                        terms = {n: t.mean() * (len(part) / len(encoded)) for n, t in model(*inputs).items()}
                        accelerator.backward(sum(factors[n] * term for n, term in terms.items()))
                    sums = {n: sums.get(n, 0.0) + term.detach() for n, term in terms.items()}

                # Average the losses over processes. A divergence ends the run before it reaches the weights.
                due = main and time.monotonic() - last_saved >= settings.checkpoint_s
                values, (stop, save_now) = average_over_processes(accelerator, sums, [stop_requested(), due])
                check_losses(values, running_means, settings.spike, step, offset, stage.name, saved)
                norm = float(accelerator.clip_grad_norm_(model.parameters(), settings.clip or float("inf")))
                if not norm < float("inf") and settings.dtype != "fp16":  # fp16's scaler skips such a step
                    raise Diverged("the gradient", f"is {norm}", step + offset, stage.name, saved)

                # Save the weights from before this step's update: this forward has shown that they are sound.
                if (save_now or stop) and step > saved:
                    save()
                    last_saved = time.monotonic()
                if stop:
                    raise KeyboardInterrupt

                # Update the weights, the EMA and the running means of the terms.
                between_steps = False
                optimizer.step()
                if accelerator.scaler and not norm < float("inf"):  # a fused optimizer does not say that it skipped
                    check_scale(accelerator.scaler.get_scale(), step + offset, stage.name, saved)
                optimizer.zero_grad(set_to_none=True)
                if ema:
                    ema.step(parameters)
                phases.end_step()
                decay = RUNNING_MEAN_DECAY
                running_means = {n: decay * running_means.get(n, v) + (1 - decay) * v for n, v in values.items()}
                step, data_position = step + 1, batch.place

                # Log the step, report progress, and draw validation images.
                now = time.perf_counter()
                totals.seconds += now - started
                pace = (time.monotonic() - began) / (step - first)
                progress.step, progress.images_per_s = step, settings.batch / pace
                progress.shares = phases.shares()
                progress.terms = {n: factors[n] * v for n, v in values.items()}
                progress.eta_s, progress.saved_step = pace * (end - step), saved or None
                if logger:
                    watch = world == 1 and (step % GATES_EVERY == 0 or step == stage.steps)
                    opened = gates_opened(model, inputs) if watch else {}
                    logger.step(step, progress, values, learning_rate, norm, now - started, opened)
                between_steps = True
                context.on_progress(progress)
                if settings.validate_every and step % settings.validate_every == 0:
                    if logger:
                        save_validation_images(context, stage, model, ema, parameters, step + offset)
                    accelerator.wait_for_everyone()
        if saved < step:
            save()
    except Exception as error:
        # Whatever stops the run, its last whole step is kept; of several processes, only where all stop together.
        together = world == 1 or isinstance(error, UnreadableData)
        if together and between_steps and step > saved and not isinstance(error, Diverged):
            with suppress(Exception):  # such as a full disk; what stopped the run is raised
                save()
                console.say(f"A checkpoint of step {step + offset} is saved; the same command resumes from there.")
        raise
    finally:
        phases.finish()
        totals = totals.with_phases(phases.seconds)
        if logger:
            logger.close()

    # At a pause, save the student with its EMA in a folder of its own; the weights themselves are in the checkpoint.
    if end < stage.steps:
        with ema_weights(ema, parameters):
            save_paused_student(context, stage, student_at_pause(context, stage, model), end + offset)
        accelerator.free_memory()
        return None

    # The student gets its EMA. The teacher, and what is shared with it, must not have changed.
    if ema:
        ema.copy_to(parameters)
    sha256 = weights_sha256(context.teacher)
    if sha256 != context.teacher_sha256:
        raise RuntimeError(f"the teacher changed during the stage {stage.name}: a frozen tensor was written to")
    log = read_log(context.folder / LOG)
    skipped, first_skipped = loader.left_out_by(gather_data_position(accelerator, data_position))
    result = StageResult(
        name=stage.name,
        mode=stage.mode,
        steps=stage.steps,
        seconds=totals.seconds,
        overhead=1 - totals.share(totals.busy_s),
        phases={phase: totals.share(getattr(totals, f"{phase}_s")) for phase in (DATA, ENCODE, COMPUTE)},
        broken_examples=sum(skipped.values()),
        why_skipped=skipped,
        first_skipped={reason: tuple(names) for reason, names in first_skipped.items()},
        audit=audit,
        teacher_sha256=sha256,
        scaler=accelerator.scaler.state_dict() if accelerator.scaler else None,
        gates=last_gates(log, stage.name),
        **first_and_last_losses(log, stage.name),
    )
    save_student(context, stage, model, result)
    if main and stage is recipe.stages[-1]:
        snapshots.keep_last(folder, 1)  # from which the run resumes, should it get more steps
    elif main:
        shutil.rmtree(folder)
    accelerator.free_memory()
    return result


@dataclass
class StageTotals:
    """Totals of a stage over all its calls: seconds, and those of each phase."""

    seconds: float = 0.0
    busy_s: float = 0.0  # encoding, forward, backward and update
    data_s: float = 0.0
    encode_s: float = 0.0

    @classmethod
    def saved(cls, spent: Mapping[str, float]) -> StageTotals:
        """Those of a checkpoint, which in earlier versions has more."""
        return cls(**{one.name: spent[one.name] for one in fields(cls) if one.name in spent})

    def with_phases(self, seconds: Mapping[str, float]) -> StageTotals:
        """These totals and the phases of this call."""
        data, encode, compute = (seconds.get(phase, 0.0) for phase in (DATA, ENCODE, COMPUTE))
        busy = self.busy_s + encode + compute
        return replace(self, busy_s=busy, data_s=self.data_s + data, encode_s=self.encode_s + encode)

    @property
    def compute_s(self) -> float:
        return self.busy_s - self.encode_s

    def share(self, seconds: float) -> float:
        return seconds / self.seconds if self.seconds else 0.0


def learning_rate_at(settings: DistillSettings, steps: int, step: int) -> float:
    """Learning rate of a step: linear warm-up, then constant, or linear or cosine decay to 0."""
    warm_up = min(500, steps // 20) if settings.warm_up is None else settings.warm_up
    if step < warm_up:
        return settings.learning_rate * (step + 1) / (warm_up + 1)
    done = (step - warm_up) / max(steps - warm_up, 1)
    decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return settings.learning_rate * decay[settings.schedule]


def balance_weights(weights: Mapping[str, float], running_means: Mapping[str, float]) -> dict[str, float]:
    """Weights that scale every term to the size of the first one, so that only the given weights set their shares."""
    reference = running_means[next(iter(weights))]
    return {name: weight * reference / max(running_means[name], losses.TINY) for name, weight in weights.items()}
