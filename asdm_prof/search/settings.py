"""The settings of `asdm-prof search`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.data.settings import SOURCES, Split
from asdm.distill.settings import CheckpointSeconds, LearningRate, TrainingDtype, TrainingSeed
from asdm.evaluate.settings import Judge
from asdm.models.settings import Device, Threads, WholeCheckpoint
from asdm.records.bench import MEASURES
from asdm.utils.settings import Option


@dataclass(frozen=True, kw_only=True)
class SearchSettings(WholeCheckpoint):
    """What a search is: every worker of a study has the same."""

    budget: Annotated[str, Option("Budget of the UNet's latency: 0.8, 80%, 250ms, 1.2s or x1.3.")]
    candidates: Annotated[
        int, Option("Plans to begin with, each unlike the others, at most 200.", at_least=1, at_most=200)
    ] = 8
    apart: Annotated[int, Option("In how many choices any two of them differ, if so many plans exist.", at_least=1)] = 3
    rungs: Annotated[
        int, Option("Rungs of successive halving: half advance to the next, for twice as long.", at_least=1)
    ] = 3
    steps: Annotated[int, Option("Training steps of all candidates together.")] = 20_000
    recipe: Annotated[
        str, Option("How each is trained: bk_sdm, progressive_incubation, without_incubation, or FILE.py:FUNCTION.")
    ] = "bk_sdm"
    data: Annotated[
        str | None, Option(f"Pictures for training and judging: {SOURCES}; default: emoji for the mini.")
    ] = None
    split: Split = "train"
    batch: Annotated[int, Option("Pictures per training step.", at_least=1)] = 16
    learning_rate: LearningRate = 1e-4
    dtype: TrainingDtype = "fp32"
    seed: TrainingSeed = 0
    device: Device = "cpu"
    threads: Threads = None
    prompts: Annotated[int, Option("Captions that teacher and students draw, 4 or more.", at_least=4)] = 64
    draw_steps: Annotated[int, Option("Denoising steps per picture.", at_least=1)] = 20
    guidance_scale: Annotated[
        float | None, Option("Classifier-free guidance scale; default: the family's.", flag="--guidance")
    ] = None
    judge: Judge = None
    metric: Annotated[
        str | None,
        Option(
            f"Quality that ranks the candidates: {', '.join(MEASURES)}; default: perceptual_to_teacher on emoji, else "
            "latent_mse_to_teacher.",
            choices=tuple(MEASURES),
        ),
    ] = None
    time_budget_s: Annotated[float, Option("Seconds to time each candidate.", flag="--time-budget", above=0)] = 60.0


@dataclass(frozen=True)
class WorkerSettings:
    """What each worker of a study may have of its own."""

    storage: Annotated[
        str | None, Option("postgresql://USER@HOST/DATABASE, for workers on several machines; default: a file.")
    ] = None
    study: Annotated[str | None, Option("Name of the study; default: FAMILY-BUDGET.")] = None
    checkpoint_s: CheckpointSeconds = 600.0
