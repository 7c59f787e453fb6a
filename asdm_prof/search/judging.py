"""Judges the pictures that a candidate's student draws, beside the teacher's from the same noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asdm.data import datasets
from asdm.evaluate.generation import GeneratedImages, generate_images
from asdm.evaluate.quality import Judgement, judgement
from asdm.evaluate.settings import BenchSettings
from asdm.models import loading
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.records.bench import Metric
from asdm.utils.progress import Tell
from asdm_prof.search.context import SearchContext


class StudentJudge:
    """A search's judge at one picture size; it loads the data and draws the teacher's pictures once."""

    def __init__(self, context: SearchContext, size: int | None) -> None:
        self._context, self._size = context, size
        self._judgement: Judgement | None = None
        self._judge: Callable[[GeneratedImages], dict[str, Metric]] | None = None

    def metrics(self, student: Path, tell: Tell) -> dict[str, Metric]:
        """Every metric of what the student in a folder draws."""
        family, settings = self._context.family, self._context.settings
        setup = Setup(self._context.weights, settings.device, "fp32", seed=settings.seed, size=self._size)
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
    ) -> Callable[[GeneratedImages], dict[str, Metric]]:
        """The judge of students; the teacher draws twice: from their seeds, and from others for the noise floor."""
        if self._judge is None:
            unet = loading.load_unet(self._context.family, self._context.weights, setup.device, "fp32", setup.seed)
            whole_pipeline.register_modules(unet=unet)
            seeds = (setup.seed, setup.seed + self._context.settings.prompts)
            teacher, again = (self._draw(whole_pipeline, seed, partial(drawing, "the teacher")) for seed in seeds)
            self._judge = self._real_pictures().beside(teacher, again)
        return self._judge

    def _draw(self, whole_pipeline: Any, seed: int, tell: Callable[[int, float | None], None]) -> GeneratedImages:
        context, settings = self._context, self._context.settings
        guidance = context.family.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        captions = [example.caption for example in self._real_pictures().real]
        pixels = context.pixels(self._size)
        return generate_images(whole_pipeline, captions, seed, settings.draw_steps, guidance, tell, size=pixels)

    def _real_pictures(self) -> Judgement:
        """The networks that judge, with the real pictures: the same ones in every worker."""
        if self._judgement is None:
            settings = self._context.settings
            data = datasets.open_source(settings.data, settings.split, self._context.pixels(self._size))
            if isinstance(data, datasets.Stream) or not isinstance(data[0], datasets.Example):
                raise ValueError(f"{settings.data} has no pictures that can be judged by; choose emoji or folder:DIR.")
            bench_settings = BenchSettings(pictures=settings.prompts, judge=settings.judge)
            self._judgement = judgement(data, f"{settings.data} has {len(data)}", bench_settings)
        return self._judgement
