"""Teacher against students in pairs: latency, MACs, memory and quality (docs/methods/measurement.md).

A student is a folder, a plan or a preset; the latter two are built in memory from the teacher's weights, grafted
blocks from those of the stage-1 student that the plan names. All run in the same backend, except that text encoders
and VAE decoder always run in eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from asdm.evaluate import memory, schedules as scheduled
from asdm.evaluate.compared import ComparedUNet, load_weights, with_distinct_names, without_weights
from asdm.evaluate.latency import (
    ComponentTimes,
    ImageLatency,
    compare_latency,
    compose_image,
    run_images,
    time_components,
)
from asdm.evaluate.quality import judge_all, open_judgement, read_real_pictures
from asdm.evaluate.settings import BenchSettings, with_protocol
from asdm.measure import backends, clocks, machine
from asdm.measure.statistics import latency, paired_ratio
from asdm.models import build, execution, loading
from asdm.models.families import Family
from asdm.models.sources import resolve
from asdm.plan import presets
from asdm.records.bench import (
    BenchResult,
    BenchSchedule,
    BenchStudent,
    BenchTeacher,
    Drawing,
    ImageParts,
    Metric,
    Pipeline,
)
from asdm.unet.inputs import check_caption_only
from asdm.utils import sizes
from asdm.utils.progress import Tell

MOST_KEPT = 16
Judged = tuple[list[dict[str, Metric]], tuple[Drawing, ...]]


def bench(
    teacher: str | None,
    sources: Sequence[str],
    settings: BenchSettings = BenchSettings(),
    tell: Tell = lambda *_: None,
    command: str = "",
    schedules: Sequence[str] = (),
) -> BenchResult:
    """Measure students against their teacher, and schedules on each of them.

    Raises ValueError for an unknown family, student or schedule, a student of another teacher, or too little memory.
    """
    family, weights, settings = _resolved(teacher, settings)
    _check(sources, settings, schedules)
    backend = backends.load(settings.backend, settings.dtype, settings.device)
    clock = clocks.clock_for(settings.device)

    # Bad input is found on the meta device, before gigabytes are loaded.
    shapes = loading.meta_unet(family, settings.dtype)
    scheduled.check(schedules, shapes, family, settings)
    drafts = with_distinct_names([without_weights(source, shapes, family, settings) for source in sources])
    judging = open_judgement(settings, family) if settings.quality else None
    at_once = memory.require(shapes, family, drafts, settings, backend)
    if judging:
        read_real_pictures(judging, family, settings, tell)

    tell("loading", 0, None)
    unet, students = shapes, drafts
    if backend.NEEDS_WEIGHTS:
        unet = loading.load_teacher(family, settings)
        students = [replace(one, unet=load_weights(one, unet, settings)) for one in drafts]
    everyone = [ComparedUNet(family.name, weights, shapes, unet), *students]

    lost: dict[str, str] = {}  # for want of memory
    with machine.quiet_torch(settings.threads, settings.device) as threads:
        compare = partial(compare_latency, backend, everyone, family, settings, clock, tell)
        single = compare(settings.batch, settings.min_rounds, "UNet")
        peaks = memory.measured_peaks(everyone, family, settings, backend)
        # What runs out of memory from here on leaves the timings before it.
        kept = partial(memory.unless_full, lost=lost)
        guided = None
        if settings.guided:  # only the batch is new in a guided step
            again = partial(compare, 2 * settings.batch, settings.guided_rounds, "guided step", warm_ups=1)
            guided = kept("guided step", again, otherwise=None)
        planned = scheduled.open_schedules(schedules, everyone, family, settings)
        drawers: list[ComparedUNet | scheduled.ComparedSchedule] = [*everyone, *planned]
        parts: ComponentTimes = {}
        images = None
        if backend.NEEDS_WEIGHTS:
            parts = kept("parts of an image", lambda: time_components(family, settings, clock, tell), otherwise={})
        if settings.run_image or planned:
            images = kept("whole image", lambda: run_images(drawers, family, settings, clock, tell), otherwise=None)
        quality: Judged = [{}] * len(drawers), ()
        if judging:
            judge = partial(judge_all, judging, drawers, family, settings, tell, at_once)
            quality = kept("quality", judge, otherwise=quality)
        run = loading.run_facts(family, weights, settings.backend, settings, threads, command, unet)

    step = guided if settings.guided else single
    drawn, composed = images, images is None
    if parts and step and composed:
        images = [compose_image(step, i, parts, settings) for i in range(len(everyone))]
    pipeline = Pipeline(steps=settings.steps, guidance_scale=settings.guidance_scale, composed=composed)
    counts = [_counts(*one, family, settings) for one in zip(everyone, peaks, strict=True)]
    return BenchResult(
        **run,
        teacher_config_sha256=loading.unet_config_sha256(shapes.config),
        pipeline=pipeline if images else None,
        teacher=_teacher_record(counts[0], single[0], step[0] if step else [], parts, images[0] if images else None),
        students=tuple(
            _student_record(student, i, counts[i], single, guided, images, quality[0][i], run)
            for i, student in enumerate(students, 1)
        ),
        schedules=tuple(
            _schedule_record(one, drawn[i] if drawn else None, quality[0][i])
            for i, one in enumerate(planned, len(everyone))
        ),
        drawings=quality[1],
        out_of_memory=lost,
    )


def _resolved(teacher: str | None, settings: BenchSettings) -> tuple[Family, str, BenchSettings]:
    """The teacher's family and weights, and the settings with them and with its guidance where none is named."""
    settings = with_protocol(settings)
    execution.check_setup(settings)
    needs = "asdm bench --quality" if settings.quality else None
    family, weights = resolve(teacher, settings, needs)
    if needs:
        check_caption_only(family.unet, family.name, needs, by_pipeline=True)
    guidance_scale = family.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    return family, weights, replace(settings, weights=weights, guidance_scale=guidance_scale)


def _check(sources: Sequence[str], settings: BenchSettings, schedules: Sequence[str]) -> None:
    if not sources and not schedules:
        raise ValueError(
            f"name at least one student: a folder, a plan or a preset ({', '.join(presets.PRESETS)}), or a schedule."
        )
    if settings.run_image and settings.backend != "eager":
        raise ValueError(
            f"--image runs whole pipelines in eager PyTorch; leave it out with the backend {settings.backend}."
        )
    if settings.quality and not backends.load(settings.backend, settings.dtype, settings.device).NEEDS_WEIGHTS:
        raise ValueError(f"the backend {settings.backend} computes no images; leave --quality out.")
    if settings.quality:
        sizes.square(settings.size, "asdm bench --quality")
    if settings.keep and not settings.quality:
        raise ValueError(f"--keep {settings.keep} needs --quality, which generates the pictures.")
    if not 0 <= settings.keep <= min(settings.pictures, MOST_KEPT):
        raise ValueError(f"keep must be between 0 and {min(settings.pictures, MOST_KEPT)}, got {settings.keep}.")


# ---------------------------------------------------------------------------------------------- records


def _counts(
    compared: ComparedUNet, measured_peak: int | None, family: Family, settings: BenchSettings
) -> dict[str, Any]:
    """The fields of a record that name a UNet and say what it holds and computes."""
    counted = build.count(family, compared.shapes, settings.dtype, settings.batch, settings.size)
    return {
        "name": compared.name, "params": counted.params, "macs": counted.total.macs,
        "peak_memory_bytes": counted.peak_memory_bytes, "measured_peak_bytes": measured_peak,
    }  # fmt: skip


def _teacher_record(
    counts: dict[str, Any], seconds: list[float], step: list[float], parts: ComponentTimes, image: ImageLatency | None
) -> BenchTeacher:
    texts = [times for name, (_, times) in parts.items() if name.startswith("text_encoder")]
    image_parts = None
    if step and texts and "vae_decoder" in parts:
        text_encoder_s = latency([sum(times) for times in zip(*texts, strict=False)])
        decoder_s = latency(parts["vae_decoder"][1])
        image_parts = ImageParts(text_encoder_s=text_encoder_s, unet_step_s=latency(step), vae_decoder_s=decoder_s)
    return BenchTeacher(
        **counts,
        unet_latency_s=latency(seconds),
        image_latency_s=image.latency_s if image else None,
        image_parts=image_parts,
    )


def _student_record(
    compared: ComparedUNet,
    i: int,
    counts: dict[str, Any],
    single: list[list[float]],
    guided: list[list[float]] | None,
    images: list[ImageLatency] | None,
    quality: dict[str, Metric],
    run: dict[str, Any],
) -> BenchStudent:
    plan = compared.resolved.plan if compared.resolved else None
    predicted = plan.predicted if plan else None
    used = {name: run[name] for name in ("backend", "dtype", "device", "threads", "batch", "size")}
    for_guided = bool(guided and plan and plan.measured_at and plan.measured_at.batch == 2 * used["batch"])
    used["batch"] *= 2 if for_guided else 1
    return BenchStudent(
        **counts,
        source=compared.source,
        removed=compared.removed,
        replaced=compared.replaced,
        plan_sha256=plan.sha256() if plan else None,
        unet_latency_s=latency(single[i]),
        paired_teacher_latency_s=latency(single[0]),
        unet_latency_ratio=paired_ratio(single[i], single[0]),
        guided_latency_ratio=paired_ratio(guided[i], guided[0]) if guided else None,
        predicted_ratio=predicted.ratio if predicted else None,
        predicted_low=predicted.low if predicted else None,
        predicted_high=predicted.high if predicted else None,
        predicted_guided=for_guided and predicted is not None,
        image_latency_s=images[i].latency_s if images else None,
        image_latency_ratio=images[i].ratio if images else None,
        warning=plan.not_measured_at(**used) if plan else None,
        quality=quality,
    )


def _schedule_record(
    planned: scheduled.ComparedSchedule, image: ImageLatency | None, quality: dict[str, Metric]
) -> BenchSchedule:
    predicted = planned.schedule.predicted
    return BenchSchedule(
        name=planned.name,
        source=planned.source,
        on=planned.on.name,
        schedule_sha256=planned.schedule.sha256(),
        macs_per_image=planned.macs,
        macs_ratio=planned.macs / planned.plain_macs,
        predicted_ratio=predicted.ratio if predicted else None,
        image_latency_s=image.latency_s if image else None,
        image_latency_ratio=image.ratio if image else None,
        warning=planned.warning,
        quality=quality,
    )
