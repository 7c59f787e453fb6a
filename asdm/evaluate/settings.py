"""The settings of `asdm bench`."""

from __future__ import annotations

from dataclasses import dataclass

from asdm.models.settings import Setup


@dataclass(frozen=True)
class BenchSettings(Setup):
    """How to compare: the defaults are what `asdm bench` does."""

    backend: str = "eager"
    steps: int = 30
    guidance_scale: float = 8.0
    min_rounds: int = 5  # of teacher, students, students, teacher: ten pairs
    guided_rounds: int = 3
    time_budget_s: float = 75.0  # of each comparison: ten pairs of SD 1.5 and a student of 3 s a call take 70 s
    target: float = 0.01  # half width of a ratio's 95 % interval
    run_image: bool = False
    image_rounds: int = 1
    quality: bool = False
    data: str = "emoji"
    split: str = "train"
    pictures: int = 200
    keep: int = 0  # pictures of each that are kept in the result
    judge: str | None = None  # a CLIP's folder or hub id; None: the judge that ships, trained on emoji

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1
