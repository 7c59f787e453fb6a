"""The training of one stage, step by step, with each step's learning rate and the weights of its terms."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass

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
from asdm.distill.divergence import Diverged, average_over_processes, check_losses, divergence_message, stop_on_signal
from asdm.distill.logger import LOG, TrainLogger, first_and_last_losses, read_log, validate
from asdm.distill.sampling import RandomInputs, task_inputs
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.setup import make_ema, make_objective, make_optimizer, make_student
from asdm.distill.stages import Stage
from asdm.distill.task import DistillationTask
from asdm.models import graft
from asdm.models.loading import weights_sha256
from asdm.records.distill import StageResult
from asdm.utils import snapshots

RUNNING_MEAN_DECAY = 0.98  # of the running mean of each term


def train_stage(context: TrainContext, stage: Stage, until: int | None = None) -> StageResult | None:
    """Train one stage to its end, from its last checkpoint where there is one, and save its student.

    Where the run pauses within the stage, after step `until` of all stages, what the student is by then is saved
    instead, and None is returned.
    """
    accelerator, settings, recipe = context.accelerator, context.settings, context.recipe
    main, world = accelerator.is_main_process, accelerator.num_processes
    number = recipe.stages.index(stage)
    offset = sum(other.steps for other in recipe.stages[:number])
    end = stage.steps if until is None else min(stage.steps, until - offset)

    # The student and what it is to learn (§2.2). What is frozen lies in the teacher's own memory.
    student, applied = make_student(context, stage)
    audit = graft.audit(student, context.teacher)
    assert not set(audit.trainable.names) & set(audit.shared_with_teacher.names), "the teacher must not learn"
    objective, weights = make_objective(context, stage, student, applied)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, settings)
    model, optimizer = accelerator.prepare(
        DistillationTask(student.train(), context.teacher, applied, objective), optimizer
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert world > 1 or held == audit.trainable.params, "the optimizer holds what the audit says, and nothing else"
    average = make_ema(parameters, settings)

    # Go on where the last checkpoint was: weights, moments, averages; the data are at the step's number.
    folder = context.folder / "checkpoints" / stage.name
    if main:
        snapshots.prepare(folder)
    accelerator.wait_for_everyone()
    step, place, typical, spent = 0, {}, {}, StageTotals()
    if found := snapshots.newest(folder):
        restore_state(found, model, optimizer, average, parameters, accelerator)
        step, place = found.step, found.state["place"]
        typical, spent = dict(found.state["typical"]), StageTotals(**found.state["spent"])
    saved = step
    log = TrainLogger(context, stage, offset, step) if main else None
    share = loader.Share(accelerator.process_index, world)
    micro = micro_batch(settings, world)
    source = loader.batches(context.data, settings.batch, settings.seed + number, share, step, place, settings.workers)
    nothing = context.encoder.nothing()
    status = TrainProgress(stage.name, step, stage.steps, saved_step=step or None)
    began, first = time.monotonic(), step

    def save() -> None:
        nonlocal saved
        where = gather_data_position(accelerator, place)
        tensors, plain = capture_state(model, optimizer, average, parameters, accelerator)
        if main:
            state = {"place": where, "typical": typical, "spent": asdict(spent), **plain}
            snapshots.write(folder, step, tensors, state, settings.keep)
        saved = step

    try:
        with loader.ahead(source) as take, stop_on_signal() as asked:
            last_saved = time.monotonic()
            while step < end:
                started = time.perf_counter()

                # Pictures and captions, encoded; their noise and timesteps, drawn for each by its place.
                batch = take()
                draws = [RandomInputs.of(context, number, step, slot.position) for slot in batch.slots]
                before = time.perf_counter()
                encoded = context.encoder.encode(batch.slots)
                busy = time.perf_counter() - before
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(settings, stage.steps, step)
                parts = [range(i, min(i + micro, len(encoded))) for i in range(0, len(encoded), micro)]
                if settings.balance and not typical:  # what each term is like, before the first gradient
                    with torch.no_grad():
                        probe = model(*task_inputs(parts[0], encoded, draws, nothing, context))
                    typical = average_over_processes(accelerator, {n: t.mean() for n, t in probe.items()}, [])[0]
                factors = balance_weights(weights, typical) if settings.balance else weights

                # Forward of teacher and student, and backward, part by part; gradients meet at the last part.
                sums: dict[str, torch.Tensor] = {}
                for part in parts:
                    arguments = task_inputs(part, encoded, draws, nothing, context)
                    alone = part is not parts[-1]
                    before = time.perf_counter()
                    with accelerator.no_sync(model) if alone else nullcontext():
                        terms = {n: t.mean() * (len(part) / len(encoded)) for n, t in model(*arguments).items()}
                        accelerator.backward(sum(factors[n] * term for n, term in terms.items()))
                    busy += time.perf_counter() - before
                    sums = {n: sums.get(n, 0.0) + term.detach() for n, term in terms.items()}

                # What all processes saw. Nonsense ends the run before it reaches the weights.
                due = main and time.monotonic() - last_saved >= settings.checkpoint_s
                values, (stop, checkpoint) = average_over_processes(accelerator, sums, [asked(), due])
                check_losses(values, typical, settings.spike, step, offset, stage.name, saved)
                before = time.perf_counter()
                norm = float(accelerator.clip_grad_norm_(model.parameters(), settings.clip or float("inf")))
                busy += time.perf_counter() - before
                if not norm < float("inf") and settings.dtype != "fp16":  # fp16's scaler leaves such a step out
                    raise Diverged(divergence_message("the gradient", f"is {norm}", step + offset, stage.name, saved))

                # Keep the weights as they were in this forward: they have just shown that they are sound.
                if (checkpoint or stop) and step > saved:
                    save()
                    last_saved = time.monotonic()
                if stop:
                    raise KeyboardInterrupt

                # Step, average, and the terms' running means.
                before = time.perf_counter()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if average:
                    average.step(parameters)
                busy += time.perf_counter() - before
                typical = {
                    n: RUNNING_MEAN_DECAY * typical.get(n, v) + (1 - RUNNING_MEAN_DECAY) * v for n, v in values.items()
                }
                step, place = step + 1, batch.place

                # Tell.
                now = time.perf_counter()
                spent.add(now - started, busy, batch.broken)
                pace = (time.monotonic() - began) / (step - first)
                status.step, status.images_per_s = step, settings.batch / pace
                status.terms = {n: factors[n] * v for n, v in values.items()}
                status.eta_s, status.saved_step = pace * (end - step), saved or None
                if log:
                    log.step(
                        step, status, values, learning_rate_at(settings, stage.steps, step - 1), norm, now - started
                    )
                context.on_progress(status)
                if settings.validate_every and step % settings.validate_every == 0:
                    if log:
                        validate(context, stage, model, average, parameters, step + offset)
                    accelerator.wait_for_everyone()
        if saved < step:
            save()
    finally:
        if log:
            log.close()

    # A pause: the average as it is by now, in a folder of its own; the weights lie in the checkpoint.
    if end < stage.steps:
        with ema_weights(average, parameters):
            save_paused_student(context, stage, student_at_pause(context, stage, model), end + offset)
        accelerator.free_memory()
        return None

    # The student keeps its average; the teacher, and what is shared with it, has kept every bit.
    if average:
        average.copy_to(parameters)
    sha256 = weights_sha256(context.teacher)
    if sha256 != context.teacher_sha256:
        raise RuntimeError(f"the teacher changed during the stage {stage.name}: a frozen tensor was written to")
    result = StageResult(
        name=stage.name,
        mode=stage.mode,
        steps=stage.steps,
        seconds=spent.seconds,
        overhead=spent.overhead,
        broken_examples=spent.broken,
        audit=audit,
        teacher_sha256=sha256,
        **first_and_last_losses(read_log(context.folder / LOG), stage.name),
    )
    save_student(context, stage, model, result)
    if main:
        shutil.rmtree(folder)
    accelerator.free_memory()
    return result


@dataclass
class StageTotals:
    """Seconds of a stage over all its sittings, and how many of them were forward, backward and step."""

    seconds: float = 0.0
    busy_s: float = 0.0
    broken: int = 0

    def add(self, seconds: float, busy_s: float, broken: int) -> None:
        self.seconds, self.busy_s, self.broken = self.seconds + seconds, self.busy_s + busy_s, broken

    @property
    def overhead(self) -> float:
        return 1 - self.busy_s / self.seconds if self.seconds else 0.0


def learning_rate_at(settings: DistillSettings, steps: int, step: int) -> float:
    """Learning rate of a step: a linear rise, then constant, or falling to nothing along a line or half a cosine."""
    warm_up = min(500, steps // 20) if settings.warm_up is None else settings.warm_up
    if step < warm_up:
        return settings.learning_rate * (step + 1) / (warm_up + 1)
    gone = (step - warm_up) / max(steps - warm_up, 1)
    falling = {
        "constant": 1.0,
        "linear": 1 - gone,
        "cosine": 0.5 * (1 + math.cos(math.pi * gone)),
    }
    return settings.learning_rate * falling[settings.schedule]


def balance_weights(weights: Mapping[str, float], typical: Mapping[str, float]) -> dict[str, float]:
    """Weights by which each term counts as its weight says, whatever its size: all are brought to the first one's."""
    anchor = typical[next(iter(weights))]
    return {name: weight * anchor / max(typical[name], losses.TINY) for name, weight in weights.items()}
