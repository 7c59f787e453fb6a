"""Quality of teacher and students: their images, judged with every metric, each beside a noise floor.

The judge is passed in, so that no model is judged by the network that trained it. The noise floor of a metric is what
the teacher's own value changes by when it generates from other seeds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from asdm.data import datasets
from asdm.data.choice import data_for, is_emoji
from asdm.data.drawn import drawn
from asdm.data.encoder import Encoder, check_encoders
from asdm.evaluate import judges, metrics
from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.generation import DRAWN_AT_ONCE, Pictures, StoredImages, store_images, thumbnail
from asdm.evaluate.metrics import JudgedImages, Reference, Samples
from asdm.evaluate.real_pictures import real_examples, store_real, usable_examples
from asdm.evaluate.schedules import ComparedSchedule
from asdm.evaluate.settings import BenchSettings
from asdm.models import example_inputs, loading, networks
from asdm.models.families import Family
from asdm.models.pipeline import pipeline
from asdm.models.settings import checkpoint_of
from asdm.records.bench import MEASURES, Drawing, Metric
from asdm.schedule.graphs.unet import GraphUNet
from asdm.schedule.unet import use
from asdm.utils import console, sizes
from asdm.utils.cache import cache_folder
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of


class Judgement(Reference):
    """Judges images beside the teacher's and beside real ones."""

    def judge_each(self, everyone: Sequence[Pictures], again: Pictures) -> list[dict[str, Metric]]:
        """Every metric of the teacher, which comes first, and of its students.

        `again` are the teacher's images from other seeds.
        """
        judge = self.beside(everyone[0], again)
        return [judge(images) for images in everyone]

    def beside(self, teacher: Pictures, again: Pictures) -> Callable[[Pictures], dict[str, Metric]]:
        """A function that judges a student beside one teacher, which is itself judged only once."""
        own, other = self.samples(teacher), self.samples(again)
        teacher_values = _metrics(own)
        noise = {name: metrics.apart(other[name], one) for name, one in own.items()}
        floors = _metrics(self.agreement(again, teacher))

        def judge(images: Pictures) -> dict[str, Metric]:
            found = teacher_values if images is teacher else self.alone(images)
            alone = {name: _beside(one, teacher_values[name].value, noise[name]) for name, one in found.items()}
            agreed = _metrics(self.agreement(images, teacher))
            return alone | {name: _beside(metric, 0.0, floors[name].value) for name, metric in agreed.items()}

        return judge

    def alone(self, images: Pictures) -> dict[str, Metric]:
        """Metrics against the real images and captions."""
        return _metrics(self.samples(images))

    def samples(self, images: Pictures) -> dict[str, Samples]:
        """Samples of the metrics against the real images and captions."""
        return self._compared(images, self.real_images, "real")

    @torch.inference_mode()
    def agreement(self, images: Pictures, teacher: Pictures) -> dict[str, Samples]:
        """Samples of the metrics against the teacher's images, which a student generates from the same seeds."""
        return self._compared(images, JudgedImages.of(self.judge, teacher), "teacher")

    def _compared(
        self, images: Pictures, target: JudgedImages, against: Literal["real", "teacher"]
    ) -> dict[str, Samples]:
        judged = JudgedImages.of(self.judge, images)
        chosen = {
            name: module
            for name, module in metrics.modules(against).items()
            if self.metrics is None or name in self.metrics
        }
        rows = {name: module.samples(judged, target, self) for name, module in chosen.items()}
        return {name: samples for name, samples in rows.items() if samples is not None}


def _metrics(samples: dict[str, Samples]) -> dict[str, Metric]:
    return {name: one.metric() for name, one in samples.items()}


def _beside(metric: Metric, teacher: float, noise_floor: float) -> Metric:
    return metric.model_copy(update={"teacher": teacher, "noise_floor": noise_floor})


# ---------------------------------------------------------------------------------------------- networks

ON_EMOJI = (
    "frechet_distance", "kernel_distance", "clip_score", "recall_at_1", "perceptual_to_teacher",
    "latent_mse_to_teacher",
)  # fmt: skip
ON_PICTURES = (
    "fid", "kid", "inception_score", "clip_score", "recall_at_1", "lpips_to_teacher", "latent_mse_to_teacher",
)  # fmt: skip


def _chosen(settings: BenchSettings, data: str, also: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics that were named, or the usual ones of a data set, and `also` some more."""
    usual = ON_EMOJI if is_emoji(data) else ON_PICTURES
    return tuple(dict.fromkeys((*(settings.metric or usual), *also)))


def open_networks(settings: BenchSettings, data: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a Judgement that depend on the data: judge, VGG, metrics (and `also` some more), their networks.

    A network that is not available leaves its metrics out, which a message says. Raises ValueError where such a metric
    was named, for unknown names, and where nothing is left.
    """
    where = _named_networks(settings)
    asked = (*(settings.metric or ()), *also)
    for name in asked:
        if name not in MEASURES:
            raise ValueError(f"unknown metric {name!r}; choose from {', '.join(MEASURES)}.")
    chosen = _chosen(settings, data, also)
    modules = {name: module for against in metrics.AGAINST for name, module in metrics.modules(against).items()}
    opened: dict[str, Any] = {}
    for name in chosen:
        network = getattr(modules[name], "NETWORK", None)
        if network is None or network in opened:
            continue
        try:
            opened[network] = modules[name].load_network(where.get(network))
        except ValueError as error:
            if network in where or any(getattr(modules[one], "NETWORK", None) == network for one in asked):
                raise
            opened[network] = None
            console.say(f"Left out: {', '.join(_metrics_of(network, chosen, modules))}; {error}")
    judge = judges.judge_for(settings.judge, data) if {*chosen} & {*JUDGED} else None
    vgg = networks.Vgg.load() if is_emoji(data) else None
    return {"judge": judge, "vgg": vgg, "metrics": chosen, "networks": {k: v for k, v in opened.items() if v}}


JUDGED = ("frechet_distance", "kernel_distance", "clip_score", "recall_at_1")  # by `--judge`


def _metrics_of(network: str, chosen: Sequence[str], modules: dict[str, Any]) -> list[str]:
    return [MEASURES[name].title for name in chosen if getattr(modules[name], "NETWORK", None) == network]


def _named_networks(settings: BenchSettings) -> dict[str, str]:
    """`["inception=FILE"]` → {"inception": "FILE"}."""
    known = sorted({m.NETWORK for a in metrics.AGAINST for m in metrics.modules(a).values() if hasattr(m, "NETWORK")})
    named = {}
    for text in settings.network or ():
        name, mark, place = text.partition("=")
        if not mark or name not in known:
            raise ValueError(f"--network takes NAME=FILE|DIR|HUB_ID with a NAME of {', '.join(known)}, got {text!r}.")
        named[name] = place
    return named


# ---------------------------------------------------------------------------------------------- benchmark


@dataclass(frozen=True)
class Judging:
    """What a benchmark judges by, before a pipeline is loaded: its data set and the networks."""

    data: Any
    name: str
    networks: dict[str, Any]


def open_judgement(settings: BenchSettings, family: Family) -> Judging:
    """The judge of a benchmark and its data set; raises ValueError for too few examples.

    Nothing of it depends on weights, so that bad input is found before they are loaded.
    """
    name = data_for(settings.data, family, "asdm bench --quality")
    side = example_inputs.latent_size(family, sizes.square(settings.size, "asdm bench --quality")) * family.vae_factor
    name = drawn(name, family, settings, side, settings.device)
    data = datasets.open_source(name, settings.split, side)
    if not isinstance(data, datasets.Stream):
        has = f"{name} has {len(data)} in its split {settings.split}"
        _check_count(settings.pictures, len(data), has, _chosen(settings, name))
    return Judging(data, name, open_networks(settings, name))


def read_real_pictures(judging: Judging, family: Family, settings: BenchSettings, tell: Tell) -> None:
    """Decode the real pictures and keep them for `judge_all`, so that what is wrong with them shows before any timing.

    Latents are only read. Raises ValueError for too few that can be used, and for latents of other encoders.
    """
    data, name = judging.data, judging.name
    tell("reading real pictures", 0, None)
    if getattr(data, "encoder_sha256", None) is None:
        reading = partial(tell, "reading real pictures")
        store_real(data, name, settings, None, cache_folder("pictures"), reading)
        return
    encoders = pipeline(family, None, replace(settings, dtype="fp32"))  # whatever draws the pictures, as in a cache
    check_encoders(data, name, Encoder(encoders), family)
    for _ in usable_examples(data, name, settings.pictures):
        pass


def _check_count(pictures: int, count: int, has: str, chosen: Sequence[str]) -> None:
    """Raises ValueError for fewer pictures than the metrics need, each half of them two, or more than there are."""
    least = 4 if {*chosen} & {*metrics.BY_HALVES} else 2
    if not least <= pictures <= count:
        raise ValueError(
            f"pictures must be at least {least} and at most the number of examples, got {pictures}: {has}."
        )


def judgement(data: Any, name: str, settings: BenchSettings, pipe: Any, also: Sequence[str] = ()) -> Judgement:
    """A judgement with its real pictures in memory: a part of the data, the same one each time.

    Raises ValueError, saying what the data have, if that is too few.
    """
    if not isinstance(data, datasets.Stream):
        _check_count(settings.pictures, len(data), f"{name} has {len(data)}", _chosen(settings, name, also))
    real = list(real_examples(data, name, settings.pictures, pipe))
    return Judgement(real=real, pool=_pool(data, real), **open_networks(settings, name, also))


def _pool(data: Any, real: Sequence[datasets.Example]) -> list[str]:
    """The captions among which a picture's own is looked for."""
    return sorted(set(getattr(data, "captions", None) or [example.caption for example in real]))


def judge_all(
    judging: Judging,
    everyone: Sequence[ComparedUNet | ComparedSchedule],
    family: Family,
    settings: BenchSettings,
    tell: Tell,
    drawn_at_once: int = DRAWN_AT_ONCE,
) -> tuple[list[dict[str, Metric]], tuple[Drawing, ...]]:
    """The metrics of every UNet and schedule, the teacher's first, and the images to keep, without schedules'.

    The teacher generates twice: the difference between its two series of seeds is the noise floor. Pictures are PNG
    files; the teacher's and the real ones are kept for later benchmarks, a student's until it is judged.
    """
    pipe = pipeline(family, everyone[0].unet, settings)
    root = cache_folder("pictures")
    real, captions = store_real(judging.data, judging.name, settings, pipe, root)
    reference = Judgement(
        real=[datasets.Example(torch.empty(0), caption) for caption in captions],
        real_pictures=replace(real, side=settings.judged_size),
        pool=_pool(judging.data, [datasets.Example(torch.empty(0), caption) for caption in captions]),
        **judging.networks,
    )
    guidance_scale = settings.guidance_scale
    assert guidance_scale is not None, "bench() fills it in"
    surroundings = _surroundings(pipe)
    own_folders = []

    def generate(compared: ComparedUNet | ComparedSchedule, seed: int) -> StoredImages:
        use(pipe, compared.unet)
        folder = root / _key(surroundings, compared, captions, seed, family, settings)
        own_folders.append(folder)
        progress = partial(tell, f"{compared.name} generates images from seed {seed}")
        shapes: dict[str, Any] = {"size": settings.size, "side": settings.judged_size, "at_once": drawn_at_once}
        return store_images(pipe, captions, seed, settings.steps, guidance_scale, folder, progress, **shapes)

    teacher, again = generate(everyone[0], settings.seed), generate(everyone[0], settings.seed + len(captions))
    console.say(f"The teacher's pictures are kept in {teacher.folder} and {again.folder}.")
    generated = [teacher, *(generate(student, settings.seed) for student in everyone[1:])]
    tell("judging", 0, None)
    unets = [images for images, one in zip(generated, everyone, strict=True) if isinstance(one, ComparedUNet)]
    kept = tuple(_drawing(reference, unets, i, settings.seed) for i in range(settings.keep))
    result = reference.judge_each(generated, again)
    for folder in own_folders[2:]:
        if folder not in own_folders[:2]:
            shutil.rmtree(folder, ignore_errors=True)
    return result, kept


def _graphs(unet: GraphUNet) -> list[str]:
    """What a schedule's exported graphs are known by: their runtime and precision, and each of them."""
    return [unet.runtime, unet.precision, *(file.model_dump_json() for file in unet.files or ())]


def _surroundings(pipe: Any) -> dict[str, Any]:
    """What pictures depend on besides the UNet: the other parts' weights, and the sampler."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        "parts": {name: loading.weights_sha256(part) for name, part in modules.items() if name != "unet"},
        "scheduler": [
            type(pipe.scheduler).__name__,
            sorted((key, str(value)) for key, value in pipe.scheduler.config.items()),
        ],
    }


def _key(
    surroundings: dict[str, Any],
    compared: ComparedUNet | ComparedSchedule,
    captions: Sequence[str],
    seed: int,
    family: Family,
    settings: BenchSettings,
) -> str:
    """A folder's name that only the same pictures get: by weights, captions, seed, sampling, precision and device."""
    facts = {
        **surroundings,
        **({"schedule": compared.schedule.sha256()} if isinstance(compared, ComparedSchedule) else {}),
        **({"graphs": _graphs(compared.unet)} if isinstance(compared.unet, GraphUNet) else {}),
        "unet": loading.weights_sha256(compared.unet),
        "config": loading.unet_config_sha256(compared.shapes.config),
        "checkpoint": {name: value for name, value in checkpoint_of(settings).items() if value is not None},
        "family": [family.name, family.prediction_type],
        "captions": list(captions),
        "seed": seed,
        **{name: getattr(settings, name) for name in ("steps", "guidance_scale", "size", "dtype", "device")},
    }
    return sha256_of(facts)[:16]


def _drawing(judging: Judgement, generated: Sequence[Pictures], i: int, first_seed: int) -> Drawing:
    rows = range(i, i + 1)
    teacher, *others = (thumbnail(images.images_in(rows)[0]) for images in generated)
    real = thumbnail(judging.real_images.source.images_in(rows)[0])
    caption = judging.captions[i]
    return Drawing(caption=caption, seed=first_seed + i, real=real, teacher=teacher, students=tuple(others))
