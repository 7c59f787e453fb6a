"""Quality of teacher and students: which judge, which real pictures, and the images that a record keeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from asdm.data.datasets import Example
from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.generation import GeneratedImages, generate_images, thumbnail
from asdm.evaluate.quality import Judgement
from asdm.evaluate.settings import BenchSettings
from asdm.models import networks
from asdm.models.families import Family
from asdm.models.pipeline import pipeline
from asdm.records.bench import Drawing, Metric
from asdm.utils import registry
from asdm.utils.progress import Tell


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
    real = judging.real[i]
    return Drawing(
        caption=real.caption,
        seed=first_seed + i,
        real=thumbnail(real.image),
        teacher=teacher,
        students=tuple(others),
    )
