"""The settings of `asdm bench`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from asdm.data.settings import SOURCES
from asdm.models.settings import Backend, PictureSetup, TimedDtype
from asdm.utils.settings import Option

Judge = Annotated[
    str | None,
    Option("Folder or hub id of the CLIP that judges; default: the bundled judge for emoji, else CLIP ViT-L/14."),
]

PROTOCOLS: dict[str, dict[str, Any]] = {
    # BK-SDM (Kim et al. 2023), §4.1: 30 K captions of COCO's validation set, 25 steps, 256×256 pictures, ViT-g/14.
    "bk-sdm": {
        "pictures": 30_000,
        "steps": 25,
        "guidance_scale": 7.5,
        "judged_size": 256,
        "judge": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        "metric": ["fid", "inception_score", "clip_score"],
    },
}


def with_protocol(settings: BenchSettings) -> BenchSettings:
    """The settings of the protocol that was named, where they have their defaults; raises ValueError for another."""
    if settings.protocol is None:
        return settings
    if settings.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {settings.protocol!r}; choose from {', '.join(PROTOCOLS)}.")
    defaults = {field.name: field.default for field in fields(settings)}
    changes = {
        name: value for name, value in PROTOCOLS[settings.protocol].items() if getattr(settings, name) == defaults[name]
    }
    return replace(settings, quality=True, **changes)


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
    image_rounds: Annotated[
        int, Option("Rounds of whole images, two pairs per student each (with --image or --schedule).")
    ] = 1
    quality: Annotated[bool, Option("Draw pictures with teacher and students, and have a CLIP judge them.")] = False
    data: Annotated[
        str | None, Option(f"Real pictures and captions (with --quality): {SOURCES}; default: emoji for the mini.")
    ] = None
    split: Annotated[str, Option("Split of that data set: train, held_out or others.")] = "train"
    pictures: Annotated[int, Option("Pictures that teacher and students each draw (with --quality).")] = 200
    keep: Annotated[int, Option("How many of these pictures bench.json keeps for the report (with --quality).")] = 0
    judge: Judge = None
    metric: Annotated[
        list[str] | None, Option("Metric to judge by, may be repeated; default: those that suit the data.")
    ] = None
    network: Annotated[
        list[str] | None,
        Option("NAME=FILE|DIR|HUB_ID: weights of a metric's network (inception, lpips, pick_score, …); repeatable."),
    ] = None
    judged_size: Annotated[
        int | None, Option("Pixels per side that pictures are scaled to before they are judged; default: as drawn.")
    ] = None
    protocol: Annotated[
        str | None,
        Option(
            "A paper's settings in the place of defaults: bk-sdm (30,000 pictures, 25 steps, judged at 256 pixels)."
        ),
    ] = None
    time_budget_s: Annotated[float, Option("Seconds for each of the two comparisons.", flag="--time-budget")] = (
        75.0  # ten pairs of SD 1.5 and a student of 3 s a call take 70 s
    )
    target: float = 0.01  # half width of a ratio's 95 % interval

    @property
    def guided(self) -> bool:
        return self.guidance_scale is not None and self.guidance_scale > 1
