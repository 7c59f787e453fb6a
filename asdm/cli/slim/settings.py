"""The settings of `asdm slim`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.data.settings import SOURCES
from asdm.distill.settings import LearningRate, TrainingDtype, TrainingSeed
from asdm.evaluate.settings import Judge
from asdm.models.settings import Backend, Device, SquareSize, Threads, WholeCheckpoint
from asdm.utils.settings import Option


@dataclass(frozen=True, kw_only=True)
class SlimSettings(WholeCheckpoint):
    """What a slim model may cost and how it is made; each field goes to the commands that know it."""

    budget: Annotated[str, Option("Budget of the UNet's latency: 0.8, 80%, 250ms, 1.2s or x1.3.")]
    data: Annotated[str | None, Option(f"Pictures to train on: {SOURCES}; default: emoji for the mini.")] = None
    steps: Annotated[int, Option("Training steps; more of them continue a finished run.", at_least=2)] = 10_000
    batch: Annotated[int, Option("Pictures per training step.", at_least=1)] = 16
    learning_rate: LearningRate = 1e-4
    recipe: Annotated[
        str, Option("How it is trained: progressive_incubation, without_incubation, bk_sdm, or FILE.py:FUNCTION.")
    ] = "progressive_incubation"
    vgg: Annotated[
        str | None,
        Option("Network of the perceptual term: mini, imagenet or a folder; default: mini for emoji, else imagenet."),
    ] = None
    hold_out: Annotated[
        float, Option("Share of the pictures that training does not see, to measure it on.", above=0, below=1)
    ] = 0.1
    max_error: Annotated[
        float,
        Option(
            "Stop after training where the student's error on held-out pictures is more than this share of the "
            "untrained student's.",
            above=0,
        ),
    ] = 0.5
    max_damage: Annotated[
        str | None, Option("Stop after planning where the plan does more damage: 0.05, or 5% of the teacher's output.")
    ] = None
    loads_in: Annotated[str | None, Option("Programs that are to load it: comfyui, sdcpp, diffusers, or several.")] = (
        None
    )
    replacement: Annotated[
        list[str] | None, Option("Replacement to consider, may be repeated; default: gri_attention and kv_downsample.")
    ] = None
    prompts: Annotated[int, Option("Pictures that damage is measured on.", at_least=2)] = 64
    pictures: Annotated[int, Option("Pictures that teacher and student draw to be judged, 4 or more.", at_least=4)] = (
        200
    )
    judge: Judge = None
    backend: Backend = "eager"
    device: Device = "cpu"
    dtype: TrainingDtype = "fp32"
    size: SquareSize = None
    threads: Threads = None
    seed: TrainingSeed = 0
