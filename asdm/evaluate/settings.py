"""The settings of `asdm bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.models.settings import Backend, PictureSetup, TimedDtype
from asdm.utils.settings import Option

Judge = Annotated[
    str | None, Option("Folder or hub id of the CLIP that judges; default: the one that ships, for emoji.")
]


@dataclass(frozen=True)
class BenchSettings(PictureSetup):
    """How to compare: the defaults are what `asdm bench` does."""

    backend: Backend = "eager"
    dtype: TimedDtype = "fp32"
    steps: Annotated[int, Option("Denoising steps per image.", at_least=1)] = 30
    guidance_scale: Annotated[
        float | None,
        Option(
            "Classifier-free guidance scale; above 1, the UNet runs at twice the batch; default: the family's.",
            at_least=0,
        ),
    ] = None
    min_rounds: int = 5  # of teacher, students, students, teacher: ten pairs
    guided_rounds: int = 3
    run_image: Annotated[
        bool, Option("Run whole pipelines from prompt to pixels instead of adding up their parts.", flag="--image")
    ] = False
    image_rounds: Annotated[int, Option("Pairs of whole images per student (with --image).")] = 1
    quality: Annotated[bool, Option("Draw pictures with teacher and students, and have a CLIP judge them.")] = False
    data: Annotated[str, Option("Data set of the real pictures and captions (with --quality).")] = "emoji"
    split: Annotated[str, Option("Split of that data set: train, held_out or others.")] = "train"
    pictures: Annotated[int, Option("Pictures that teacher and students each draw (with --quality).")] = 200
    keep: Annotated[int, Option("How many of these pictures bench.json keeps for the report (with --quality).")] = 0
    judge: Judge = None
    time_budget_s: Annotated[float, Option("Seconds for each of the two comparisons.", flag="--time-budget")] = (
        75.0  # ten pairs of SD 1.5 and a student of 3 s a call take 70 s
    )
    target: float = 0.01  # half width of a ratio's 95 % interval

    @property
    def guided(self) -> bool:
        return self.guidance_scale is not None and self.guidance_scale > 1
