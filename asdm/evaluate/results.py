"""The records of a benchmark's teacher and students."""

from __future__ import annotations

from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.image_latency import ImageLatency
from asdm.evaluate.settings import BenchSettings
from asdm.measure.statistics import latency, paired_ratio
from asdm.models import build
from asdm.models.families import Family
from asdm.records.bench import BenchStudent, BenchTeacher, ImageParts

# ---------------------------------------------------------------------------------------------- records


def teacher_record(
    compared: ComparedUNet,
    family: Family,
    settings: BenchSettings,
    seconds: list[float],
    step: list[float],
    parts: dict[str, tuple[int, list[float]]],
    images: list[ImageLatency] | None,
) -> BenchTeacher:
    counted = build.count(family, compared.shapes, settings.dtype, settings.batch, settings.size)
    texts = [times for name, (_, times) in parts.items() if name.startswith("text_encoder")]
    return BenchTeacher(
        name=compared.name,
        params=counted.params,
        macs=counted.total.macs,
        peak_memory_bytes=counted.peak_memory_bytes,
        unet_latency_s=latency(seconds),
        image_latency_s=images[0].latency_s if images else None,
        image_parts=ImageParts(
            text_encoder_s=latency([sum(times) for times in zip(*texts, strict=False)]),
            unet_step_s=latency(step),
            vae_decoder_s=latency(parts["vae_decoder"][1]),
        )
        if texts and "vae_decoder" in parts
        else None,
    )


def student_record(
    compared: ComparedUNet,
    i: int,
    family: Family,
    settings: BenchSettings,
    single: list[list[float]],
    guided: list[list[float]] | None,
    images: list[ImageLatency] | None,
    threads: int,
) -> BenchStudent:
    counted = build.count(family, compared.shapes, settings.dtype, settings.batch, settings.size)
    predicted = compared.resolved.plan.predicted if compared.resolved else None
    used: dict[str, str | int] = {
        "backend": settings.backend, "dtype": settings.dtype, "device": settings.device, "threads": threads,
        "batch": settings.batch, "size": settings.size or family.size,
    }  # fmt: skip
    return BenchStudent(
        name=compared.name,
        source=compared.source,
        params=counted.params,
        macs=counted.total.macs,
        peak_memory_bytes=counted.peak_memory_bytes,
        removed=compared.removed,
        replaced=compared.replaced,
        plan_sha256=compared.resolved.plan.sha256() if compared.resolved else None,
        unet_latency_s=latency(single[i]),
        paired_teacher_latency_s=latency(single[0]),
        unet_latency_ratio=paired_ratio(single[i], single[0]),
        guided_latency_ratio=paired_ratio(guided[i], guided[0]) if guided else None,
        predicted_ratio=predicted.ratio if predicted else None,
        predicted_low=predicted.low if predicted else None,
        predicted_high=predicted.high if predicted else None,
        image_latency_s=images[i].latency_s if images else None,
        image_latency_ratio=images[i].ratio if images else None,
        warning=compared.resolved.plan.not_measured_at(**used) if compared.resolved else None,
    )
