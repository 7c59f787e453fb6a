"""Trains a candidate to the end of a rung: a run of `asdm distill` that pauses there and resumes in the next one."""

from __future__ import annotations

from asdm.distill import recipes
from asdm.distill.context import TrainProgress
from asdm.distill.run import distill
from asdm.distill.settings import DistillSettings
from asdm.utils.progress import Tell
from asdm_prof.search.context import SearchContext
from asdm_prof.search.halving import Job
from asdm_prof.search.settings import SearchSettings
from asdm_prof.search.study import SharedStudy

SHARED = ("data", "split", "seed", "weights", "device", "dtype", "batch", "learning_rate", "threads")


def training_settings(
    settings: SearchSettings, steps: int, size: int | None = None, checkpoint_s: float = 600.0
) -> DistillSettings:
    """How a candidate trains, as `asdm distill` takes it."""
    shared = {name: getattr(settings, name) for name in SHARED}
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
