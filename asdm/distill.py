"""Distillation: stages that are data, and the one loop that runs them all (§2.2, §2.5).

Everything random follows from (seed, stage, step, place in the batch): which pictures a step gets, their noise, their
timesteps, whose caption is dropped. So a checkpoint is weights, moments, averages and a number, and a run that was
killed and taken up again ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm import (
    builder,
    checkpoints,
    datasets,
    features,
    feed,
    flops,
    lesson,
    losses,
    measure,
    models,
    perceptual,
    runs,
    students,
    treediff,
    units,
)
from asdm.encoding import Encoder, weights_sha256
from asdm.families import Family, load_family
from asdm.feed import seeded
from asdm.files import utc_now, write_whole
from asdm.lesson import BLOCKS, PERCEPTUAL, Lesson, Mode, Subject
from asdm.pipelines import pipeline
from asdm.plan import PruningPlan, Topology
from asdm.results import DistillResult, DistillRun, FreezeAudit, MemoryEstimate, StagePlan, StageResult
from asdm.surgery import Applied

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "adamw8bit")
CALM_STEPS = 50  # before a stage's losses are known well enough to call one of them a spike
TEACHER = "teacher"  # what a stage grafts from that has none before it
MEMORY = 0.98  # of the running mean of each term
RESULT = "distill.json"
PAUSED = "paused"


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe: a plan, what its student starts from, and what it learns.

    With `grafts_from`, the name of a stage before it, the student is the combined UNet (§2.2, Fig. 4): that stage's
    shallow blocks on the frozen teacher; `TEACHER` stands for the teacher's own blocks as the plan leaves them.
    Without, the student is the teacher as the plan leaves it, and all of it learns.
    """

    name: str
    plan: PruningPlan
    steps: int
    weights: Mapping[str, float]  # term → weight; see asdm.lesson.NAMES
    grafts_from: str | None = None  # a stage's name, or TEACHER
    mode: Mode = "end_to_end"
    normalise: bool = True

    def described(self) -> dict[str, Any]:
        """What of it decides the outcome, as plain JSON."""
        plain = {key: getattr(self, key) for key in ("name", "steps", "grafts_from", "mode", "normalise")}
        return plain | {"plan_sha256": self.plan.sha256(), "weights": dict(self.weights)}


Recipe = Callable[[Topology, PruningPlan, int], tuple[Stage, ...]]


@dataclass(frozen=True)
class Settings:
    """How a recipe is run. `batch` is a step's, over all processes.

    What is neither in a run's identity nor its tuning (`micro_batch`, `workers`, …) changes no more than rounding.
    """

    data: str
    steps: int
    split: str = "train"
    seed: int = 0
    weights: str | None = None
    device: str = "cpu"
    dtype: str = "fp32"
    size: int | None = None
    batch: int = 16
    micro_batch: int | None = None
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warm_up: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    min_snr: float = 5.0
    caption_dropout: float = 0.1
    balance: bool = False
    spike: float = 20.0
    vgg: str = "mini"
    gradient_checkpointing: bool = False
    workers: int = 2
    threads: int | None = None
    checkpoint_s: float = 600.0
    keep: int = 2
    validate_every: int = 0
    validate_captions: int = 4
    tensorboard: bool = False


@dataclass
class Status:
    """What a run is doing, for whoever watches."""

    stage: str
    step: int
    steps: int
    terms: dict[str, float] = field(default_factory=dict)  # weighted: their shares of the loss
    images_per_s: float = 0.0
    eta_s: float | None = None
    saved_step: int | None = None


Watch = Callable[[Status], None]


class Diverged(ValueError):
    """A loss or a gradient that is no number, or a loss that leapt: training stopped before it reached the weights."""


# ---------------------------------------------------------------------------------------------- before anything runs


@dataclass(frozen=True)
class Course:
    """A recipe made concrete for one teacher, still without weights."""

    family: Family
    shapes: nn.Module  # the teacher on the meta device
    plan: PruningPlan
    stages: tuple[Stage, ...]

    @cached_property
    def cost(self) -> flops.Count:
        """The teacher's, which every stage's student is compared with."""
        return builder.count(self.family, self.shapes)


def plan_course(source: str, teacher: str, settings: Settings, recipe: Recipe) -> Course:
    """Read plan and teacher, and make the stages; raises ValueError for what cannot be, before anything is loaded."""
    check(settings)
    family = load_family(teacher)
    if len(family.text_encoders) > 1 or family.unet.get("addition_embed_type"):
        raise ValueError(f"{family.name} conditions its UNet on more than a caption, which asdm distill cannot do yet.")
    shapes = models.meta_unet(family)
    plan = students.read_plan(source, shapes, family.name)
    stages = recipe(units.topology(shapes), plan, settings.steps)
    for stage in stages:
        legal = lesson.LEGAL[stage.mode]
        if unknown := sorted(set(stage.weights) - set(legal)):
            raise ValueError(
                f"the stage {stage.name} ({stage.mode}) knows no loss term {unknown[0]!r}; choose from "
                f"{', '.join(legal)}."
            )
    return Course(family, shapes, plan, stages)


def check(settings: Settings) -> None:
    """Raises ValueError naming the first setting that cannot be, and its choices."""
    models.check_setup(models.Setup(device=settings.device, dtype=settings.dtype, threads=settings.threads))
    at_least = {"steps": 1, "batch": 1, "micro_batch": 1, "workers": 1, "keep": 1, "seed": 0, "warm_up": 0}
    for name, least in (at_least | {"validate_every": 0}).items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} {value} is too few; choose {least} or more.")
    for name, choices in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
        if getattr(settings, name) not in choices:
            raise ValueError(f"unknown {name} {getattr(settings, name)!r}; choose from {', '.join(choices)}.")
    for name in ("learning_rate", "clip", "min_snr", "spike", "weight_decay", "checkpoint_s"):
        if not 0 <= getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} {getattr(settings, name)} cannot be; choose 0 or more.")
    for name in ("ema", "caption_dropout"):
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(f"{name} {getattr(settings, name)} cannot be; choose from 0 up to, but not, 1.")
    if settings.dtype == "fp16" and settings.device == "cpu":
        raise ValueError("fp16 autocast needs an accelerator; choose --dtype bf16 or fp32 on a CPU.")


def small_student(course: Course, stage: Stage) -> tuple[Any, Applied]:
    """A stage's student on the meta device, frozen as it will be."""
    if stage.grafts_from is None:
        student, applied = students.build(course.shapes, stage.plan)
        return own_memory(student), applied
    if stage.grafts_from == TEACHER:
        return students.assemble(course.shapes, None, stage.plan)
    before = next(other for other in course.stages if other.name == stage.grafts_from)
    return students.assemble(course.shapes, small_student(course, before)[0], stage.plan, before.plan.edits)


def own_memory(student: Any) -> Any:
    """The student with memory of its own, all of it learning; it was built from the teacher's own tensors."""
    for parameter in student.parameters():
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
    return student


def described(course: Course, stage: Stage, settings: Settings, world: int = 1) -> StagePlan:
    """A stage before it runs, from shapes alone."""
    student, applied = small_student(course, stage)
    inputs = models.unet_inputs(course.family, batch=1, size=settings.size, device="meta")
    found = features.comparable(student, course.shapes, features.places(student, applied.name_map), inputs)
    weights, left_out = terms_of(stage, student, found)
    return StagePlan(
        name=stage.name,
        mode=stage.mode,
        steps=stage.steps,
        weights=weights,
        places={name: len(found[name]) for name in weights if name in losses.PLACED},
        left_out=left_out,
        audit=students.audit(student, course.shapes),
        memory=memory_estimate(course, stage, student, applied, tuple(weights), found, settings, world),
    )


def terms_of(
    stage: Stage, student: Any, found: Mapping[str, features.Places]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """A stage's terms with their weights, and those that this student has no place for."""
    last = [block for _, block in units.iter_blocks(student)][-1]
    no_output = stage.mode == "blockwise" and not any(p.requires_grad for p in last.parameters())
    left_out = tuple(
        name for name in stage.weights if (name in losses.PLACED and not found[name]) or (no_output and name != BLOCKS)
    )
    weights = {name: weight for name, weight in stage.weights.items() if weight and name not in left_out}
    if not weights:
        raise ValueError(f"the stage {stage.name} has no loss term left to learn from; give one a weight (--weight).")
    return weights, left_out


def memory_estimate(
    course: Course,
    stage: Stage,
    student: Any,
    applied: Applied,
    terms: tuple[str, ...],
    places: Mapping[str, Any],
    settings: Settings,
    world: int,
) -> MemoryEstimate:
    """Bytes on one device, counted on the meta device; the VGG and kernels' own space are left out."""
    storages = {p.untyped_storage()._cdata: p.nbytes for m in (student, course.shapes) for p in m.parameters()}
    learning = sum(p.nbytes for p in student.parameters() if p.requires_grad)
    micro = micro_batch(settings, world)
    subject = Subject(
        tuple(t for t in terms if t != PERCEPTUAL), places, "epsilon", stage.mode, stage.normalise, None, None
    )
    inputs = models.unet_inputs(course.family, batch=micro, size=settings.size, device="meta")
    noisy = inputs["sample"]
    args = (noisy, inputs["timestep"], inputs["encoder_hidden_states"], torch.empty_like(noisy))
    meta_lesson = Lesson(student, course.shapes, applied, subject)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    activations = lesson.saved_bytes(lambda: meta_lesson(*args, noisy.new_empty(micro)), student)
    moments = 0.25 if settings.optimizer == "adamw8bit" else 1.0
    return MemoryEstimate(
        weights=sum(storages.values()),
        encoders=encoder_bytes(course.family),
        gradients=learning,
        optimizer=int(2 * learning * moments),
        average=learning if settings.ema else 0,
        activations=activations if settings.dtype == "fp32" else activations // 2,
    )


def encoder_bytes(family: Family) -> int:
    """Bytes of the frozen text encoder and VAE, in fp32."""
    from diffusers import AutoencoderKL

    from asdm.components import components_of

    with torch.device("meta"):
        parts = [part.module for part in components_of(family) if part.name.startswith("text_encoder")]
        parts += [AutoencoderKL.from_config(family.vae)] if family.vae else []
    return sum(p.nbytes for part in parts for p in part.parameters())


def micro_batch(settings: Settings, world: int) -> int:
    """Pictures per forward of one process; raises ValueError where the batch cannot be shared out evenly."""
    own, rest = divmod(settings.batch, world)
    micro = min(settings.micro_batch or own, own)
    if rest or micro < 1 or own % micro:
        raise ValueError(
            f"a batch of {settings.batch} cannot be shared out to {world} processes in parts of {micro or 1}; "
            f"choose a --batch that is a multiple of {world * max(micro, 1)}."
        )
    return micro


def preview(
    source: str, teacher: str, settings: Settings, recipe: Recipe, only: str | None = None
) -> tuple[StagePlan, ...]:
    """What a run would do, stage by stage, from shapes alone: nothing is loaded, trained or written."""
    course = plan_course(source, teacher, settings, recipe)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return tuple(described(course, stage, settings, world) for stage in _chosen(course.stages, only))


def is_main_process() -> bool:
    """Whether this process is the one that writes, of those that `accelerate launch` started."""
    return int(os.environ.get("RANK", "0")) == 0


# ---------------------------------------------------------------------------------------------- a run


@dataclass
class Classroom:
    """What all stages share: the accelerator, the teacher with its encoders, the data, and the folder."""

    accelerator: Any
    course: Course
    settings: Settings
    folder: Path
    teacher: Any
    made: Any  # the teacher's pipeline
    encoder: Encoder
    data: Any
    alphas: torch.Tensor  # ᾱ_t of every timestep
    prediction_type: str
    teacher_sha256: str
    watch: Watch


def distil(
    source: str,
    teacher: str,
    output: Path,
    settings: Settings,
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
    chosen = _chosen(course.stages, only)
    if until is not None:
        _check_pause(course.stages, until, only)
    runs.refuse_foreign(output)
    accelerator = make_accelerator(settings)
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    lock = runs.locked(output) if accelerator.is_main_process else nullcontext()
    with lock:
        room = enter(course, settings, output, accelerator, watch)
        if accelerator.is_main_process:
            runs.claim(output, _record(room, command), force, amend, _reached(output, course))
        accelerator.wait_for_everyone()
        if not amend and (done := _finished(output, course.stages)):
            return done
        results = dict(_results(output, course.stages))
        _refuse_earlier(output, course, until)
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


def _chosen(stages: Sequence[Stage], only: str | None) -> tuple[Stage, ...]:
    found = tuple(stage for stage in stages if only in (None, stage.name))
    if not found:
        raise ValueError(f"unknown stage {only!r}; choose from {', '.join(stage.name for stage in stages)}.")
    return found


def ends_at(stages: Sequence[Stage], stage: Stage) -> int:
    """The step, of all stages together, with which a stage ends."""
    return sum(other.steps for other in stages[: stages.index(stage) + 1])


def _check_pause(stages: Sequence[Stage], until: int, only: str | None) -> None:
    """Raises ValueError for a step that is none, or at which the recipe has no student of the plan to show."""
    if only is not None:
        raise ValueError(f"--until counts the steps of all stages; leave out --stage {only}, or --until.")
    total = ends_at(stages, stages[-1])
    if not 0 < until <= total:
        raise ValueError(f"step {until} is none of this run; choose 1 to {total}.")
    stage = next(stage for stage in stages if until <= ends_at(stages, stage))
    if stage is not stages[-1] and stages[-1].grafts_from != stage.name:
        raise ValueError(
            f"at step {until} the stage {stage.name} is trained, from which no student of the plan can be made; pause "
            f"in {stages[-1].name}, from step {total - stages[-1].steps + 1} on."
        )


def _refuse_earlier(folder: Path, course: Course, until: int | None) -> None:
    if until is not None and (reached := _reached(folder, course)) > until:
        raise ValueError(f"{folder} has been trained to step {reached}, which is beyond {until}; there is no way back.")


def make_accelerator(settings: Settings) -> Any:
    """accelerate's, in the world that `accelerate launch` made, or alone."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process had its own
    precision = {"fp32": "no"}.get(settings.dtype, settings.dtype)
    return Accelerator(mixed_precision=precision, cpu=settings.device == "cpu")


def enter(course: Course, settings: Settings, folder: Path, accelerator: Any, watch: Watch) -> Classroom:
    """Load the teacher with its encoders, and open the data."""
    family, status = course.family, Status("loading the teacher", 0, settings.steps)
    watch(status)
    micro_batch(settings, accelerator.num_processes)
    device = str(accelerator.device)
    weights = settings.weights or models.default_weights(family)
    setup = models.Setup(weights, device, "fp32", seed=settings.seed, size=settings.size)
    side = models.latent_size(family, settings.size) * family.vae_factor
    data = datasets.open_source(settings.data, settings.split, side)
    teacher = models.load_unet(family, weights, device, "fp32", settings.seed)
    teacher.requires_grad_(False)
    made = pipeline(family, teacher, setup)
    prediction_type = made.scheduler.config.prediction_type
    if prediction_type not in losses.PREDICTIONS:
        raise ValueError(
            f"{family.name} predicts {prediction_type!r}; asdm distill knows {' and '.join(losses.PREDICTIONS)}."
        )
    encoder = Encoder(made)
    if getattr(data, "encoder_sha256", None) not in (None, encoder.sha256()):
        raise ValueError(
            f"{settings.data} was encoded by other encoders than {family.name}'s; run asdm cache with --teacher "
            f"{family.name}."
        )
    return Classroom(
        accelerator=accelerator,
        course=course,
        settings=settings,
        folder=folder,
        teacher=teacher,
        made=made,
        encoder=encoder,
        data=data,
        alphas=made.scheduler.alphas_cumprod.to(accelerator.device).float(),
        prediction_type=prediction_type,
        teacher_sha256=weights_sha256(teacher),
        watch=watch,
    )


IDENTITY = ("split", "steps", "seed", "size", "batch", "dtype", "optimizer", "vgg")
TUNING = (
    "learning_rate", "schedule", "warm_up", "weight_decay", "clip", "ema", "min_snr", "caption_dropout", "balance",
    "spike",
)  # fmt: skip


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
        environment=measure.environment(str(room.accelerator.device), torch.get_num_threads()),
    )


def _folder_of(folder: Path, stage: str) -> Path:
    return folder / "stages" / stage


def _results(folder: Path, stages: Sequence[Stage]) -> Iterator[tuple[str, StageResult]]:
    """The stages that are done: their students are whole folders."""
    for stage in stages:
        path = _folder_of(folder, stage.name) / "stage.json"
        if path.exists():
            yield stage.name, StageResult.model_validate_json(path.read_text())


def _reached(folder: Path, course: Course) -> int:
    """The last step of the whole run that a checkpoint or a finished stage holds."""
    reached = start = 0
    for stage in course.stages:
        found = checkpoints.newest(folder / "checkpoints" / stage.name)
        if found:
            reached = start + found.step
        if _folder_of(folder, stage.name).exists():
            reached = start + stage.steps
        start += stage.steps
    return reached


def _finished(folder: Path, stages: Sequence[Stage]) -> DistillResult | None:
    path = folder / RESULT
    done = DistillResult.load(path) if path.exists() else None
    return done if done and len(done.stages) == len(stages) else None


def _conclude(room: Classroom, results: list[StageResult], until: int | None = None) -> DistillResult:
    """The last stage's student takes its place in the run's own folder; what is known of all stages is written."""
    course, last = room.course, room.course.stages[-1].name
    whole = len(results) == len(course.stages)
    if room.accelerator.is_main_process and whole:
        _publish(_folder_of(room.folder, last), room.folder)
        shutil.rmtree(room.folder / PAUSED, ignore_errors=True)
    student = _folder_of(room.folder, last) / "student_sha256"
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


def _publish(stage: Path, folder: Path) -> None:
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


# ---------------------------------------------------------------------------------------------- one stage


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
    audit = students.audit(student, room.teacher)
    assert not set(audit.trainable.names) & set(audit.shared_with_teacher.names), "the teacher must not learn"
    small = models.unet_inputs(course.family, size=2 * course.family.size_step, device=str(accelerator.device))
    places = features.comparable(student, room.teacher, features.places(student, applied.name_map), small)
    weights, _ = terms_of(stage, student, places)
    subject = Subject(
        terms=tuple(weights),
        places=places,
        prediction_type=room.prediction_type,
        mode=stage.mode,
        normalise=stage.normalise,
        min_snr=settings.min_snr or None,
        perceptual=make_perceptual(room) if PERCEPTUAL in weights else None,
    )
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
        checkpoints.prepare(folder)
    accelerator.wait_for_everyone()
    step, place, typical, spent = 0, {}, {}, Spent()
    if found := checkpoints.newest(folder):
        restore(found, pupil, optimizer, average, parameters, accelerator)
        step, place = found.step, found.state["place"]
        typical, spent = dict(found.state["typical"]), Spent(**found.state["spent"])
    saved = step
    log = Log(room, stage, offset, step) if main else None
    share = feed.Share(accelerator.process_index, world)
    micro = micro_batch(settings, world)
    source = feed.batches(room.data, settings.batch, settings.seed + number, share, step, place, settings.workers)
    nothing = room.encoder.nothing()
    status = Status(stage.name, step, stage.steps, saved_step=step or None)
    began, first = time.monotonic(), step

    def save() -> None:
        nonlocal saved
        where = merged(accelerator, place)
        tensors, plain = snapshot(pupil, optimizer, average, parameters, accelerator)
        if main:
            state = {"place": where, "typical": typical, "spent": asdict(spent), **plain}
            checkpoints.write(folder, step, tensors, state, settings.keep)
        saved = step

    try:
        with feed.ahead(source) as take, interruptible() as asked:
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
                    raise Diverged(_nonsense("the gradient", f"is {norm}", step + offset, stage.name, saved))

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
        **ends(runs.read_log(room.folder / runs.LOG), stage.name),
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


def make_student(room: Classroom, stage: Stage) -> tuple[Any, Applied]:
    """A stage's student with weights: the teacher as the plan leaves it, or the combined UNet."""
    if stage.grafts_from is None:
        student, applied = students.build(room.teacher, stage.plan)
        return own_memory(student), applied
    if stage.grafts_from == TEACHER:
        return students.assemble(room.teacher, None, stage.plan)
    source = _folder_of(room.folder, stage.grafts_from)
    if not source.is_dir():
        raise ValueError(
            f"the stage {stage.name} grafts blocks of the stage {stage.grafts_from}, whose student is not in {source}; "
            f"run --stage {stage.grafts_from} first."
        )
    before = models.load_unet(load_family(str(source)), str(source), str(room.accelerator.device))
    edits = next(other.plan.edits for other in room.course.stages if other.name == stage.grafts_from)
    return students.assemble(room.teacher, before, stage.plan, edits)


def make_optimizer(parameters: Sequence[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """AdamW, or bitsandbytes' with moments of 8 bits."""
    arguments: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **arguments)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError:
        raise ValueError("adamw8bit needs the package 'bitsandbytes', which is not installed; choose adamw.") from None
    return AdamW8bit(parameters, **arguments)


def make_average(parameters: Sequence[nn.Parameter], settings: Settings) -> Any:
    """diffusers' running average of the weights, or None."""
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=settings.ema, foreach=True) if settings.ema else None


def make_perceptual(room: Classroom) -> perceptual.Perceptual:
    """The VGG with an adapter for this VAE's latents, fitted on the run's first pictures and kept in its folder."""
    from safetensors.torch import load_file, save

    path, device = room.folder / "adapter.safetensors", room.accelerator.device
    if not path.exists() and room.accelerator.is_main_process:
        latents, images = adapter_examples(room)
        write_whole(path, save({"adapter": perceptual.fit_adapter(latents.cpu(), images.cpu())}), force=True)
    room.accelerator.wait_for_everyone()
    adapter = load_file(path)["adapter"].to(device)
    return perceptual.Perceptual(perceptual.load_vgg(room.settings.vgg).to(device), adapter)


def adapter_examples(room: Classroom, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and pictures of the run's first examples; where only latents are there, the VAE draws the pictures."""
    slots = next(feed.batches(room.data, count, 0, feed.Share(), 0, {}, 1)).slots
    found = room.encoder.encode(slots)
    latents = torch.stack([example.mean for example in found])
    images = [slot.example.image for slot in slots if isinstance(slot.example, datasets.Example)]
    if images:
        return latents, torch.stack(images)
    from asdm.quality import decoded

    with torch.no_grad():
        return latents, torch.cat([decoded(room.made.vae, part) for part in latents.split(4)])


def rate(settings: Settings, steps: int, step: int) -> float:
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


# ---------------------------------------------------------------------------------------------- what is random


@dataclass(frozen=True)
class Draw:
    """What chance decides for one picture of one step: it follows from seed, stage, step and place alone."""

    timestep: int
    noise: torch.Tensor
    posterior: torch.Tensor  # the VAE's own noise
    drop_caption: bool

    @classmethod
    def of(cls, room: Classroom, stage: int, step: int, position: int) -> Draw:
        settings = room.settings
        generator = seeded(settings.seed, stage, step, position)
        side = models.latent_size(room.course.family, settings.size)
        shape = (room.course.family.unet.get("in_channels", 4), side, side)
        return cls(
            timestep=int(torch.randint(len(room.alphas), (1,), generator=generator)),
            drop_caption=bool(torch.rand(1, generator=generator) < settings.caption_dropout),
            noise=torch.randn(shape, generator=generator),
            posterior=torch.randn(shape, generator=generator),
        )


def inputs_of(
    part: Sequence[int], encoded: Sequence[Any], draws: Sequence[Draw], nothing: torch.Tensor, room: Classroom
) -> tuple[torch.Tensor, ...]:
    """A lesson's arguments for some pictures of a batch: noisy latents, timesteps, states, target, ᾱ."""
    device = room.accelerator.device
    noise, posterior = (
        torch.stack([getattr(draws[i], name) for i in part]).to(device) for name in ("noise", "posterior")
    )
    mean, std = (torch.stack([getattr(encoded[i], name) for i in part]).to(device) for name in ("mean", "std"))
    states = torch.stack([nothing if draws[i].drop_caption else encoded[i].states for i in part])
    timesteps = torch.tensor([draws[i].timestep for i in part], device=device)
    alpha = room.alphas[timesteps]
    noisy, target = losses.target_of(mean + std * posterior, noise, alpha, room.prediction_type)
    return noisy, timesteps, states, target, alpha


# ---------------------------------------------------------------------------------------------- what is kept


def snapshot(
    pupil: nn.Module, optimizer: Any, average: Any, parameters: Sequence[nn.Parameter], accelerator: Any
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Everything that learns, by its own name, however it is wrapped or sharded, and what is no tensor."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    weights = learning(pupil)
    gathered: Any = get_optimizer_state_dict(pupil, optimizer.optimizer, options=_whole())
    moments = gathered.get("state", {})  # of several processes only the first is given what was gathered
    tensors = {
        "weights": weights,
        "optimizer": {
            f"{name}/{key}": torch.as_tensor(value) for name, kept in moments.items() for key, value in kept.items()
        },
    }
    plain: dict[str, Any] = {"scaler": accelerator.scaler.state_dict() if accelerator.scaler else None}
    if average:
        with averaged(average, parameters):
            tensors["average"] = {name: tensor.clone() for name, tensor in learning(pupil).items()}
        plain["average_steps"] = average.optimization_step
    return tensors, plain


def restore(
    found: checkpoints.Checkpoint,
    pupil: nn.Module,
    optimizer: Any,
    average: Any,
    parameters: Sequence[nn.Parameter],
    accelerator: Any,
) -> None:
    """Put a checkpoint's tensors back where `snapshot` found them, bit by bit."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    weights: dict[str, Any] = dict(found.tensors("weights"))
    own = learning(pupil).keys()
    if accelerator.is_main_process and weights.keys() != own:
        raise ValueError(f"{found.folder} holds other weights than this stage learns; name another output.")
    state: dict[str, Any] = {}
    for key, value in found.tensors("optimizer").items():
        name, _, what = key.rpartition("/")
        state.setdefault(name, {})[what] = value
    groups = [{**group, "params": list(weights)} for group in optimizer.state_dict()["param_groups"]]
    set_optimizer_state_dict(
        pupil, optimizer.optimizer, {"state": state, "param_groups": groups}, options=_whole(strict=False)
    )
    if average:
        set_model_state_dict(pupil, dict(found.tensors("average")), options=_whole(strict=False))
        for shadow, parameter in zip(average.shadow_params, parameters, strict=True):
            shadow.copy_(parameter.detach())
        average.optimization_step = found.state["average_steps"]
    set_model_state_dict(pupil, weights, options=_whole(strict=False))
    if accelerator.scaler and found.state["scaler"]:
        accelerator.scaler.load_state_dict(found.state["scaler"])


def learning(pupil: nn.Module) -> dict[str, Any]:
    """The weights that learn, whole, by their names in the lesson."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(pupil, options=_whole())


def _whole(strict: bool = True) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=strict)


@contextmanager
def averaged(average: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The running averages in the weights' place for the length of a `with`."""
    if not average:
        yield
        return
    own = [parameter.detach().clone() for parameter in parameters]
    average.copy_to(parameters)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, tensor in zip(parameters, own, strict=True):
                parameter.copy_(tensor)


def merged(accelerator: Any, place: dict[str, Any]) -> dict[str, Any]:
    """Where the data are, of all processes."""
    if accelerator.num_processes == 1:
        return place
    from accelerate.utils import gather_object

    return {key: value for part in gather_object([place]) for key, value in part.items()}


def keep_student(room: Classroom, stage: Stage, pupil: nn.Module, result: StageResult) -> None:
    """Save a stage's student as a diffusers folder, whole or not at all."""
    student = gathered(room, stage, pupil)
    if room.accelerator.is_main_process:
        texts = {
            "stage.json": result.model_dump_json(indent=1) + "\n",
            "student_sha256": weights_sha256(student) + "\n",
        }
        _save(room, stage, stage, student, result.audit, _folder_of(room.folder, stage.name), texts)
    room.accelerator.wait_for_everyone()


def gathered(room: Classroom, stage: Stage, pupil: nn.Module) -> Any:
    """The student in a lesson; where it is sharded, one of its own with what all processes hold."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    student = features.bare(pupil).student
    if room.accelerator.distributed_type == "FSDP":
        whole: dict[str, Any] = get_model_state_dict(
            pupil, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        student, _ = small_student(room.course, stage)
        tensors = {name.removeprefix("student."): tensor.contiguous() for name, tensor in whole.items()}
        if room.accelerator.is_main_process:
            student.load_state_dict(tensors, strict=True, assign=True)
    return student


def paused_student(room: Classroom, stage: Stage, pupil: nn.Module) -> Any:
    """What a student of the plan is at a pause: the last stage's own, or stage 1's blocks grafted as they are."""
    student, last = gathered(room, stage, pupil), room.course.stages[-1]
    if stage is last:
        return student
    return students.assemble(room.teacher, copy.deepcopy(student), last.plan, stage.plan.edits)[0]


def keep_paused(room: Classroom, stage: Stage, student: Any, step: int) -> None:
    """Save what a student of the plan is at a pause, with the step in `paused.json`."""
    if room.accelerator.is_main_process:
        last, path = room.course.stages[-1], room.folder / PAUSED
        about = {"step": step, "student_sha256": weights_sha256(student)}
        audit = students.audit(student, room.teacher)
        _save(room, stage, last, student, audit, path, {"paused.json": json.dumps(about, indent=1) + "\n"})
    room.accelerator.wait_for_everyone()


def _save(
    room: Classroom,
    trained: Stage,
    stage: Stage,
    student: Any,
    audit: FreezeAudit,
    path: Path,
    texts: Mapping[str, str],
) -> None:
    """A student of `stage`'s plan as a diffusers folder; a full disk names the checkpoint of the stage in training."""
    course = room.course
    small, applied = small_student(course, stage)
    about = builder.record(
        stage.plan,
        course.family,
        room.settings.weights or models.default_weights(course.family),
        course.shapes,
        small,
        applied,
        (course.cost, builder.count(course.family, small)),
        None,
        audit,
    )
    diff = {"diff.txt": treediff.render(about.diff) + "\n"}
    with checkpoints.one_sentence(str(path), room.folder / "checkpoints" / trained.name):
        students.save(student, stage.plan, about, path, True, {**diff, **texts})


def ends(lines: Sequence[Mapping[str, Any]], stage: str) -> dict[str, dict[str, float]]:
    """Means of every loss over the first and the last tenth of a stage's steps."""
    mine = [line for line in lines if line["stage"] == stage]
    count = max(len(mine) // 10, 1)
    names = [name for name in mine[0] if name == "loss" or name in lesson.NAMES] if mine else []

    def mean(part: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {name: sum(line[name] for line in part) / len(part) for name in names}

    return {"first": mean(mine[:count]), "last": mean(mine[-count:])}


# ---------------------------------------------------------------------------------------------- what goes wrong


def agreed(
    accelerator: Any, terms: Mapping[str, torch.Tensor], flags: Sequence[bool]
) -> tuple[dict[str, float], list[bool]]:
    """Every term's mean over all processes, and whether any of them raised each flag."""
    row = torch.stack([*(t.detach().float() for t in terms.values())])
    row = torch.cat([row, torch.tensor([float(f) for f in flags], device=row.device)])
    row = accelerator.reduce(row, reduction="mean").tolist()
    return dict(zip(terms, row, strict=False)), [value > 0 for value in row[len(terms) :]]


def refuse_nonsense(
    values: Mapping[str, float],
    typical: Mapping[str, float],
    spike: float,
    step: int,
    offset: int,
    stage: str,
    saved: int,
) -> None:
    """Raises Diverged naming the first term that is no number, or `spike` times what it is used to be."""
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise Diverged(_nonsense(name, f"is {value}", step + offset, stage, saved))
        if spike and step >= CALM_STEPS and value > spike * max(typical[name], losses.TINY):
            what = f"leapt to {value:.4g} (it was about {typical[name]:.4g}; --spike {spike:g})"
            raise Diverged(_nonsense(name, what, step + offset, stage, saved))


def _nonsense(what: str, how: str, step: int, stage: str, saved: int) -> str:
    kept = f"the checkpoint of its step {saved} is kept" if saved else "there is no checkpoint before it"
    return (
        f"{what} {how} at step {step + 1} (stage {stage}), so training stopped; {kept}. Go on from it with the same "
        "command, --amend and, say, a lower --learning-rate."
    )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second Ctrl-C stops at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which gets no signals
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------- what is shown


class Log:
    """The run's JSONL file, and TensorBoard where it is wanted."""

    def __init__(self, room: Classroom, stage: Stage, offset: int, step: int) -> None:
        self.stage, self.offset = stage, offset
        self.file = runs.Log(room.folder / runs.LOG, offset + step)
        self.board = _board(room.folder / "tensorboard", offset + step) if room.settings.tensorboard else None

    def step(
        self, step: int, status: Status, values: Mapping[str, float], rate: float, norm: float, seconds: float
    ) -> None:
        line = {
            "step": self.offset + step,
            "stage": self.stage.name,
            "stage_step": step,
            "loss": sum(status.terms.values()),
            **values,
            "learning_rate": rate,
            "gradient_norm": norm if norm == norm else None,
            "step_s": round(seconds, 6),
            "images_per_s": round(status.images_per_s, 3),
        }
        self.file.write(line)
        if self.board:
            for name in ("loss", *values, "learning_rate", "gradient_norm", "images_per_s"):
                if line[name] is not None:
                    self.board.add_scalar(name, line[name], self.offset + step)
            for name, value in status.terms.items():
                self.board.add_scalar(f"share/{name}", value, self.offset + step)

    def close(self) -> None:
        self.file.close()
        if self.board:
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ValueError("--tensorboard needs the package 'tensorboard'; install asdm[tensorboard].") from None
    return SummaryWriter(str(folder), purge_step=step + 1)


@torch.no_grad()
def validate(
    room: Classroom, stage: Stage, pupil: nn.Module, average: Any, parameters: Sequence[nn.Parameter], step: int
) -> None:
    """Draw a few captions with teacher and student from the same seeds: teacher above, student below."""
    import io

    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    from asdm import quality

    captions = datasets.captions_of(room.data, room.settings.validate_captions)
    side = models.latent_size(room.course.family, room.settings.size) * room.course.family.vae_factor
    student = features.bare(pupil).student
    rows = []
    student.eval()
    try:
        with averaged(average, parameters):
            for unet in (room.teacher, student):
                room.made.unet = unet
                guidance = room.course.family.guidance_scale
                rows.append(quality.draw(room.made, captions, 0, 20, guidance, size=side).images)
    finally:
        room.made.unet = room.teacher
        student.train()
    grid = make_grid(torch.cat(rows), nrow=len(captions), normalize=True, value_range=(-1, 1))
    stream = io.BytesIO()
    to_pil_image(grid).save(stream, format="PNG")
    write_whole(room.folder / "validation" / f"step-{step:08d}-{stage.name}.png", stream.getvalue(), force=True)
