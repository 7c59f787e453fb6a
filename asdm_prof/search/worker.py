"""One worker of a search: it takes a job, times, trains and judges the candidate, until none is left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asdm.data import datasets
from asdm.distill import recipes
from asdm.distill.context import TrainProgress
from asdm.distill.divergence import Diverged
from asdm.distill.memory import TooLittleMemory
from asdm.distill.run import distill
from asdm.distill.run_folder import PAUSED
from asdm.distill.settings import DistillSettings
from asdm.evaluate import benchmark
from asdm.evaluate.generation import GeneratedImages, Pictures, generate_images
from asdm.evaluate.quality import Judgement, judgement
from asdm.evaluate.settings import BenchSettings
from asdm.models import example_inputs, loading
from asdm.models.families import Family, load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import PictureSetup, Setup, checkpoint_of
from asdm.models.sources import weights_of
from asdm.plan.edits import PruningPlan
from asdm.records.bench import Metric
from asdm.records.measurement import device_kind
from asdm.utils.locks import MachineLock
from asdm.utils.progress import Tell
from asdm_prof.search.halving import Job
from asdm_prof.search.settings import SearchSettings
from asdm_prof.search.study import Claim, SharedStudy

POLL_S = 1.0


@dataclass(frozen=True)
class SearchContext:
    """A search's teacher and settings, with the folders of its candidates under `output`."""

    family: Family
    teacher: str
    settings: SearchSettings
    output: Path
    host: MachineLock = field(default_factory=MachineLock)

    @property
    def weights(self) -> str:
        return weights_of(self.family, self.settings, needs="asdm-prof search")

    def pixels(self, size: int | None = None) -> int:
        """Pixels per side of the pictures."""
        return example_inputs.latent_size(self.family, size) * self.family.vae_factor

    def plan_file(self, candidate: int) -> Path:
        return self.output / "candidates" / f"{candidate:02d}" / "plan.json"

    def training_folder(self, candidate: int) -> Path:
        return self.output / "candidates" / f"{candidate:02d}" / "training"

    def has_checkpoint(self, job: Job) -> bool:
        """Whether the candidate's training so far lies in this process's folder."""
        return (self.training_folder(job.candidate) / "run.json").exists()

    def student_folder(self, job: Job) -> Path:
        """Where a candidate's student lies at the end of a rung."""
        training = self.training_folder(job.candidate)
        return training if job.rung == self.settings.rungs - 1 else training / PAUSED


# ---------------------------------------------------------------------------------------------- time, train, judge


def time_candidate(context: SearchContext, study: SharedStudy, candidate: int, tell: Tell) -> dict[str, Any]:
    """A candidate's UNet latency, MACs and parameters; measured once, as training does not change its shape."""
    for trial in study.measured_trials():
        if trial.params["candidate"] == candidate:
            return dict(trial.user_attrs["latency"])
    known, own = study.settings, context.settings.device
    settings = BenchSettings(
        **checkpoint_of(context.settings) | {"weights": context.weights},
        device=own if device_kind(own) == device_kind(known["timed_device"]) else known["timed_device"],
        **{name: known[f"timed_{name}"] for name in ("backend", "dtype", "threads", "batch")},
        seed=context.settings.seed,
        size=known["size"],
        steps=1,
        guidance_scale=0.0,
        time_budget_s=context.settings.time_budget_s,
    )
    tell("waiting for the machine", 0, None)
    with context.host.timing():
        result = benchmark.bench(context.teacher, [str(context.plan_file(candidate))], settings, tell)
    (student,) = result.students
    return {
        "ratio": student.unet_latency_ratio.model_dump(),
        "student_s": student.unet_latency_s.samples,
        "teacher_s": student.paired_teacher_latency_s.samples,
        "macs": student.macs,
        "params": student.params,
    }


def training_settings(
    settings: SearchSettings, steps: int, size: int | None = None, checkpoint_s: float = 600.0
) -> DistillSettings:
    """How a candidate trains, as `asdm distill` takes it."""
    names = ("data", "split", "seed", "device", "dtype", "batch", "learning_rate", "threads")
    shared = {name: getattr(settings, name) for name in names} | checkpoint_of(settings)
    return DistillSettings(steps=steps, size=size, checkpoint_s=checkpoint_s, **shared)


def train_candidate(context: SearchContext, study: SharedStudy, job: Job, checkpoint_s: float, tell: Tell) -> None:
    """Train a candidate from its last checkpoint to the end of the job's rung."""
    halving, attempts, settings = study.halving, study.attempts(), context.settings
    steps_after = halving.steps_left(attempts) - halving.steps_of(job)  # of the whole search, after this job
    workers = sum(attempt.fate == "open" for attempt in attempts)
    with context.host.working() as pause:

        def on_progress(status: TrainProgress) -> None:
            pause()
            eta_s = None
            if status.eta_s is not None:
                eta_s = status.eta_s + steps_after / workers * settings.batch / status.images_per_s
            tell(f"training, {status.stage}", status.step, eta_s)

        try:
            distill(
                str(context.plan_file(job.candidate)),
                context.teacher,
                context.training_folder(job.candidate),
                training_settings(settings, halving.final_steps, study.settings["size"], checkpoint_s),
                recipes.load(settings.recipe),
                on_progress=on_progress,
                command="asdm-prof search",
                until=halving.steps_until(job.rung),
            )
        except TooLittleMemory as error:  # names options of asdm distill
            smaller = {"a smaller --batch": settings.batch > 1, "--dtype bf16": settings.dtype == "fp32"}
            remedies = [remedy for remedy, helps in smaller.items() if helps] or ["another --device"]
            raise ValueError(f"{str(error).partition(';')[0]}; choose {' or '.join(remedies)}.") from None


class StudentJudge:
    """A search's judge at one picture size; it loads the data and draws the teacher's pictures once."""

    def __init__(self, context: SearchContext, size: int | None) -> None:
        self._context, self._size = context, size
        self._judge: Callable[[Pictures], dict[str, Metric]] | None = None
        self._judgement: Judgement | None = None

    def metrics(self, student: Path, tell: Tell) -> dict[str, Metric]:
        """Every metric of what the student in a folder draws."""
        family, settings = self._context.family, self._context.settings
        parts = checkpoint_of(settings) | {"weights": self._context.weights}
        setup = PictureSetup(**parts, device=settings.device, seed=settings.seed, size=self._size)
        with self._context.host.working() as pause, torch.inference_mode():

            def drawing(who: str, count: int, eta_s: float | None) -> None:
                pause()
                tell(f"{who} draws", count, None)

            unet = loading.load_unet(load_family(str(student)), str(student), settings.device, "fp32")
            whole_pipeline = pipeline(family, unet, setup)
            judge = self._beside_the_teacher(whole_pipeline, setup, drawing)
            whole_pipeline.register_modules(unet=unet)
            drawn = self._draw(whole_pipeline, settings.seed, partial(drawing, "the student"))
            tell("judging", 0, None)
            return judge(drawn)

    def _beside_the_teacher(
        self, whole_pipeline: Any, setup: Setup, drawing: Tell
    ) -> Callable[[Pictures], dict[str, Metric]]:
        """The judge of students; the teacher draws twice: from their seeds, and from others for the noise floor."""
        if self._judge is None:
            self._judgement = self._judgement_with(whole_pipeline)
            unet = loading.load_teacher(self._context.family, setup)
            whole_pipeline.register_modules(unet=unet)
            seeds = (setup.seed, setup.seed + self._context.settings.prompts)
            teacher, again = (self._draw(whole_pipeline, seed, partial(drawing, "the teacher")) for seed in seeds)
            self._judge = self._judgement.beside(teacher, again)
        return self._judge

    def _draw(self, whole_pipeline: Any, seed: int, tell: Callable[[int, float | None], None]) -> GeneratedImages:
        context, settings = self._context, self._context.settings
        assert self._judgement is not None, "the teacher drew first"
        guidance = context.family.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        captions, pixels = self._judgement.captions, context.pixels(self._size)
        return generate_images(whole_pipeline, captions, seed, settings.draw_steps, guidance, tell, size=pixels)

    def _judgement_with(self, whole_pipeline: Any) -> Judgement:
        """The networks that judge, with the real pictures: the same ones in every worker."""
        settings = self._context.settings
        assert settings.data is not None, "search() fills it in"
        data = datasets.open_source(settings.data, settings.split, self._context.pixels(self._size))
        bench_settings = BenchSettings(pictures=settings.prompts, judge=settings.judge)
        return judgement(data, settings.data, bench_settings, whole_pipeline, (str(settings.metric),))


# ---------------------------------------------------------------------------------------------- the worker


class Worker:
    """One process of a search."""

    def __init__(self, context: SearchContext, study: SharedStudy, checkpoint_s: float, tell: Tell) -> None:
        self._context, self._study, self._checkpoint_s, self._tell = context, study, checkpoint_s, tell
        self._judge = StudentJudge(context, study.settings["size"])

    def run(self) -> None:
        """Take jobs until every rung has ended."""
        while not self._study.halving.finished(self._study.attempts()):
            claim = self._study.claim(self._context.has_checkpoint)
            if claim is None:
                self._tell("waiting for the other workers", 0, None)
                time.sleep(POLL_S)
                continue
            self._run_trial(claim)
            self._remove_checkpoints_of_dropped_candidates()

    def _run_trial(self, claim: Claim) -> None:
        """One trial, from its claim to its end, however it ends."""
        study, job, metric = self._study, claim.job, self._context.settings.metric
        head = f"candidate {job.candidate}, rung {job.rung + 1} of {study.halving.rungs}"

        def tell(stage: str, count: int, eta_s: float | None) -> None:
            self._tell(f"{head}: {stage}", count, eta_s)

        try:
            plan = PruningPlan.parse(study.plans[job.candidate], f"candidate {job.candidate}")
            plan.save(self._context.plan_file(job.candidate), force=True)
            latency = time_candidate(self._context, study, job.candidate, tell)
            claim.note(latency=latency)
            train_candidate(self._context, study, job, self._checkpoint_s, tell)
            metrics = self._judge.metrics(self._context.student_folder(job), tell)
            claim.note(quality={name: value.model_dump() for name, value in metrics.items()})
            if metric not in metrics:
                data = self._context.settings.data
                raise ValueError(f"{data} has too few captions for {metric}; choose another --metric.")
        except Diverged as error:
            study.fail(claim, "diverged", str(error))
            return
        except BaseException as error:
            with suppress(Exception):  # the first error is the one to report
                study.fail(claim, "left", str(error) or type(error).__name__)
            raise
        study.complete(claim, latency["ratio"]["median"], metrics[metric].value)

    def _remove_checkpoints_of_dropped_candidates(self) -> None:
        """Delete the checkpoints of candidates that will not train on; their students stay."""
        halving, attempts = self._study.halving, self._study.attempts()
        for rung in range(1, halving.rungs):
            kept = halving.candidates_in(rung, attempts)
            if not kept:
                continue
            for candidate in set(halving.candidates_in(rung - 1, attempts) or ()) - set(kept):
                shutil.rmtree(self._context.training_folder(candidate) / "checkpoints", ignore_errors=True)
