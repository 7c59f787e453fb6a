"""Quality of teacher and students: their images, judged with every metric, each beside a noise floor.

The judge is passed in, so that no model is judged by the network that trained it. The noise floor of a metric is what
the teacher's own value changes by when it generates from other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch

from asdm.data.datasets import Example
from asdm.evaluate import metrics
from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.generation import GeneratedImages, generate_images, thumbnail
from asdm.evaluate.metrics import JudgedImages, Reference, Samples
from asdm.evaluate.settings import BenchSettings
from asdm.models import networks
from asdm.models.families import Family
from asdm.models.pipeline import pipeline
from asdm.records.bench import Drawing, Metric
from asdm.utils import registry
from asdm.utils.progress import Tell


class Judgement(Reference):
    """Judges images beside the teacher's and beside real ones."""

    def of(self, everyone: Sequence[GeneratedImages], again: GeneratedImages) -> list[dict[str, Metric]]:
        """Every metric of the teacher, which comes first, and of its students.

        `again` are the teacher's images from other seeds.
        """
        judge = self.beside(everyone[0], again)
        return [judge(images) for images in everyone]

    def beside(
        self, teacher: GeneratedImages, again: GeneratedImages
    ) -> Callable[[GeneratedImages], dict[str, Metric]]:
        """A function that judges a student beside one teacher, which is itself judged only once."""
        teacher_values, noise = self.alone(teacher), self.alone(again)
        floors = _metrics(self.agreement(again, teacher))

        def judge(images: GeneratedImages) -> dict[str, Metric]:
            own = teacher_values if images is teacher else self.alone(images)
            alone = {
                name: _beside(metric, teacher_values[name].value, abs(teacher_values[name].value - noise[name].value))
                for name, metric in own.items()
            }
            agreed = _metrics(self.agreement(images, teacher))
            return alone | {name: _beside(metric, 0.0, floors[name].value) for name, metric in agreed.items()}

        return judge

    def alone(self, images: GeneratedImages) -> dict[str, Metric]:
        """Metrics against the real images and captions."""
        return _metrics(self.samples(images))

    def samples(self, images: GeneratedImages) -> dict[str, Samples]:
        """Samples of the metrics against the real images and captions."""
        return self._compared(images, self.real_images, "real")

    @torch.inference_mode()
    def agreement(self, images: GeneratedImages, teacher: GeneratedImages) -> dict[str, Samples]:
        """Samples of the metrics against the teacher's images, which a student generates from the same seeds."""
        return self._compared(images, JudgedImages.of(self.judge, teacher), "teacher")

    def _compared(
        self, images: GeneratedImages, target: JudgedImages, against: Literal["real", "teacher"]
    ) -> dict[str, Samples]:
        judged = JudgedImages.of(self.judge, images)
        rows = {name: m.samples(judged, target, self) for name, m in metrics.modules(against).items()}
        return {name: samples for name, samples in rows.items() if samples is not None}


def _metrics(samples: dict[str, Samples]) -> dict[str, Metric]:
    return {name: one.metric() for name, one in samples.items()}


def _beside(metric: Metric, teacher: float, noise_floor: float) -> Metric:
    return metric.model_copy(update={"teacher": teacher, "noise_floor": noise_floor})


# ---------------------------------------------------------------------------------------------- benchmark


def open_judgement(settings: BenchSettings) -> Judgement:
    """The judge of a benchmark and the part of its data set that it compares with."""
    data = registry.load("asdm.data.datasets", settings.data).open_data(settings.split)
    return judgement(data, f"{settings.data} has {len(data)} in its split {settings.split}", settings)


def judgement(data: Sequence[Example], has: str, settings: BenchSettings) -> Judgement:
    """The judge, and the real images and captions that it compares with: a part of the data, the same one each time.

    Raises ValueError, saying what the data `has`, if that is too few.
    """
    if not 2 <= settings.pictures <= len(data):
        raise ValueError(f"pictures must be between 2 and the number of examples, got {settings.pictures}: {has}.")
    picks = np.random.default_rng(0).permutation(len(data))[: settings.pictures]
    judge = networks.ClipJudge(settings.judge) if settings.judge else networks.Judge.load()
    pool = sorted({example.caption for example in data})
    return Judgement(judge, networks.Vgg.load(), [data[int(i)] for i in picks], pool)


def judge_all(
    judging: Judgement, everyone: Sequence[ComparedUNet], family: Family, settings: BenchSettings, tell: Tell
) -> tuple[list[dict[str, Metric]], tuple[Drawing, ...]]:
    """The metrics of every UNet, the teacher's first, and the images to keep.

    The teacher generates twice: the difference between its two series of seeds is the noise floor.
    """
    pipe = pipeline(family, everyone[0].unet, settings)
    captions, guidance_scale = judging.captions, settings.guidance_scale
    assert guidance_scale is not None, "bench() fills it in"

    def generate(compared: ComparedUNet, seed: int) -> GeneratedImages:
        pipe.register_modules(unet=compared.unet)
        progress = partial(tell, f"{compared.name} generates images from seed {seed}")
        return generate_images(pipe, captions, seed, settings.steps, guidance_scale, progress, size=settings.size)

    teacher, again = generate(everyone[0], settings.seed), generate(everyone[0], settings.seed + len(captions))
    generated = [teacher, *(generate(student, settings.seed) for student in everyone[1:])]
    tell("judging", 0, None)
    kept = tuple(_drawing(judging, generated, i, settings.seed) for i in range(settings.keep))
    return judging.of(generated, again), kept


def _drawing(judging: Judgement, generated: Sequence[GeneratedImages], i: int, first_seed: int) -> Drawing:
    teacher, *others = (thumbnail(images.images[i]) for images in generated)
    image, caption = judging.real[i]
    return Drawing(caption=caption, seed=first_seed + i, real=thumbnail(image), teacher=teacher, students=tuple(others))
