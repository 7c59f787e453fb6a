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
from asdm.data.encoder import weights_sha256
from asdm.distill import losses
from asdm.distill.checkpoint import averaged, keep_paused, keep_student, merged, paused_student, restore, snapshot
from asdm.distill.context import Classroom, Status
from asdm.distill.divergence import Diverged, agreed, interruptible, nonsense, refuse_nonsense
from asdm.distill.logger import LOG, Log, ends, read_log, validate
from asdm.distill.sampling import Draw, inputs_of
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.setup import make_average, make_optimizer, make_student, make_subject
from asdm.distill.stages import Stage
from asdm.distill.task import Lesson
from asdm.models import graft
from asdm.records.distill import StageResult
from asdm.utils import snapshots

MEMORY = 0.98  # of the running mean of each term


def run_stage(room: Classroom, stage: Stage, until: int | None = None) -> StageResult | None:
    """Train one stage to its end, from its last checkpoint where there is one, and save its student.

    Where the run pauses within the stage, after step `until` of all stages, what the student is by then is saved
    instead, and None is returned.
    """
    accelerator, settings, course = room.accelerator, room.settings, room.course
    main, world = accelerator.is_main_process, accelerator.num_processes
    number = course.stages.index(stage)
    offset = sum(other.steps for other in course.stages[:number])
    end = stage.steps if until is None else min(stage.steps, until - offset)

    # The student and what it is to learn (§2.2). What is frozen lies in the teacher's own memory.
    student, applied = make_student(room, stage)
    audit = graft.audit(student, room.teacher)
    assert not set(audit.trainable.names) & set(audit.shared_with_teacher.names), "the teacher must not learn"
    subject, weights = make_subject(room, stage, student, applied)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, settings)
    pupil, optimizer = accelerator.prepare(Lesson(student.train(), room.teacher, applied, subject), optimizer)
    parameters = [p for p in pupil.parameters() if p.requires_grad]
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert world > 1 or held == audit.trainable.params, "the optimizer holds what the audit says, and nothing else"
    average = make_average(parameters, settings)

    # Go on where the last checkpoint was: weights, moments, averages; the data are at the step's number.
    folder = room.folder / "checkpoints" / stage.name
    if main:
        snapshots.prepare(folder)
    accelerator.wait_for_everyone()
    step, place, typical, spent = 0, {}, {}, Spent()
    if found := snapshots.newest(folder):
        restore(found, pupil, optimizer, average, parameters, accelerator)
        step, place = found.step, found.state["place"]
        typical, spent = dict(found.state["typical"]), Spent(**found.state["spent"])
    saved = step
    log = Log(room, stage, offset, step) if main else None
    share = loader.Share(accelerator.process_index, world)
    micro = micro_batch(settings, world)
    source = loader.batches(room.data, settings.batch, settings.seed + number, share, step, place, settings.workers)
    nothing = room.encoder.nothing()
    status = Status(stage.name, step, stage.steps, saved_step=step or None)
    began, first = time.monotonic(), step

    def save() -> None:
        nonlocal saved
        where = merged(accelerator, place)
        tensors, plain = snapshot(pupil, optimizer, average, parameters, accelerator)
        if main:
            state = {"place": where, "typical": typical, "spent": asdict(spent), **plain}
            snapshots.write(folder, step, tensors, state, settings.keep)
        saved = step

    try:
        with loader.ahead(source) as take, interruptible() as asked:
            last_saved = time.monotonic()
            while step < end:
                started = time.perf_counter()

                # Pictures and captions, encoded; their noise and timesteps, drawn for each by its place.
                batch = take()
                draws = [Draw.of(room, number, step, slot.position) for slot in batch.slots]
                before = time.perf_counter()
                encoded = room.encoder.encode(batch.slots)
                busy = time.perf_counter() - before
                for group in optimizer.param_groups:
                    group["lr"] = rate(settings, stage.steps, step)
                parts = [range(i, min(i + micro, len(encoded))) for i in range(0, len(encoded), micro)]
                if settings.balance and not typical:  # what each term is like, before the first gradient
                    with torch.no_grad():
                        probe = pupil(*inputs_of(parts[0], encoded, draws, nothing, room))
                    typical = agreed(accelerator, {n: t.mean() for n, t in probe.items()}, [])[0]
                factors = balanced(weights, typical) if settings.balance else weights

                # Forward of teacher and student, and backward, part by part; gradients meet at the last part.
                sums: dict[str, torch.Tensor] = {}
                for part in parts:
                    arguments = inputs_of(part, encoded, draws, nothing, room)
                    alone = part is not parts[-1]
                    before = time.perf_counter()
                    with accelerator.no_sync(pupil) if alone else nullcontext():
                        terms = {n: t.mean() * (len(part) / len(encoded)) for n, t in pupil(*arguments).items()}
                        accelerator.backward(sum(factors[n] * term for n, term in terms.items()))
                    busy += time.perf_counter() - before
                    sums = {n: sums.get(n, 0.0) + term.detach() for n, term in terms.items()}

                # What all processes saw. Nonsense ends the run before it reaches the weights.
                due = main and time.monotonic() - last_saved >= settings.checkpoint_s
                values, (stop, checkpoint) = agreed(accelerator, sums, [asked(), due])
                refuse_nonsense(values, typical, settings.spike, step, offset, stage.name, saved)
                before = time.perf_counter()
                norm = float(accelerator.clip_grad_norm_(pupil.parameters(), settings.clip or float("inf")))
                busy += time.perf_counter() - before
                if not norm < float("inf") and settings.dtype != "fp16":  # fp16's scaler leaves such a step out
                    raise Diverged(nonsense("the gradient", f"is {norm}", step + offset, stage.name, saved))

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
                typical = {n: MEMORY * typical.get(n, v) + (1 - MEMORY) * v for n, v in values.items()}
                step, place = step + 1, batch.place

                # Tell.
                now = time.perf_counter()
                spent.add(now - started, busy, batch.broken)
                pace = (time.monotonic() - began) / (step - first)
                status.step, status.images_per_s = step, settings.batch / pace
                status.terms = {n: factors[n] * v for n, v in values.items()}
                status.eta_s, status.saved_step = pace * (end - step), saved or None
                if log:
                    log.step(step, status, values, rate(settings, stage.steps, step - 1), norm, now - started)
                room.watch(status)
                if settings.validate_every and step % settings.validate_every == 0:
                    if log:
                        validate(room, stage, pupil, average, parameters, step + offset)
                    accelerator.wait_for_everyone()
        if saved < step:
            save()
    finally:
        if log:
            log.close()

    # A pause: the average as it is by now, in a folder of its own; the weights lie in the checkpoint.
    if end < stage.steps:
        with averaged(average, parameters):
            keep_paused(room, stage, paused_student(room, stage, pupil), end + offset)
        accelerator.free_memory()
        return None

    # The student keeps its average; the teacher, and what is shared with it, has kept every bit.
    if average:
        average.copy_to(parameters)
    sha256 = weights_sha256(room.teacher)
    if sha256 != room.teacher_sha256:
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
        **ends(read_log(room.folder / LOG), stage.name),
    )
    keep_student(room, stage, pupil, result)
    if main:
        shutil.rmtree(folder)
    accelerator.free_memory()
    return result


@dataclass
class Spent:
    """Seconds of a stage over all its sittings, and how many of them were forward, backward and step."""

    seconds: float = 0.0
    busy_s: float = 0.0
    broken: int = 0

    def add(self, seconds: float, busy_s: float, broken: int) -> None:
        self.seconds, self.busy_s, self.broken = self.seconds + seconds, self.busy_s + busy_s, broken

    @property
    def overhead(self) -> float:
        return 1 - self.busy_s / self.seconds if self.seconds else 0.0


def rate(settings: DistillSettings, steps: int, step: int) -> float:
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


def balanced(weights: Mapping[str, float], typical: Mapping[str, float]) -> dict[str, float]:
    """Weights by which each term counts as its weight says, whatever its size: all are brought to the first one's."""
    anchor = typical[next(iter(weights))]
    return {name: weight * anchor / max(typical[name], losses.TINY) for name, weight in weights.items()}
