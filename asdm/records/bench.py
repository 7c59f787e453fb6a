"""`asdm bench`: teacher and students measured in pairs, and the catalogue of quality metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from asdm.records.measurement import Count, Estimate, Factor, Number, Ratio, Time, UNetRun, mac_unit
from asdm.utils import notebook
from asdm.utils.record import Frozen, later


@dataclass(frozen=True)
class Measure:
    """A quality metric: its name in files and in papers, whether more is better, and its least value."""

    name: str
    title: str
    more_is_better: bool = False
    lowest: float = 0.0

    @property
    def direction(self) -> str:
        return "more is better" if self.more_is_better else "less is better"


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("frechet_distance", "Fréchet distance"),
        Measure("kernel_distance", "kernel distance", lowest=-math.inf),  # unbiased, so around 0 between equals
        Measure("clip_score", "CLIP score", more_is_better=True, lowest=-math.inf),
        Measure("recall_at_1", "R@1", more_is_better=True),
        Measure("perceptual_to_teacher", "perceptual to teacher"),
        Measure("latent_mse_to_teacher", "latent MSE to teacher"),
        Measure("fid", "FID"),
        Measure("kid", "KID", lowest=-math.inf),
        Measure("inception_score", "IS", more_is_better=True),
        Measure("lpips_to_teacher", "LPIPS to teacher"),
        Measure("pick_score", "PickScore", more_is_better=True, lowest=-math.inf),
        Measure("hps_v2", "HPS v2", more_is_better=True, lowest=-math.inf),
        Measure("image_reward", "ImageReward", more_is_better=True, lowest=-math.inf),
    )
}


class Metric(Frozen):
    """One quality metric of a student, beside its teacher's value and the teacher's own noise."""

    value: Number
    low: Number
    high: Number
    teacher: Number | None = None
    noise_floor: Number | None = None
    note: str | None = later(None)  # what a reader should know about the value


class ImageParts(Frozen):
    """Seconds of one whole image: encoding the prompt, one guided UNet step, decoding the latent."""

    text_encoder_s: Time
    unet_step_s: Time
    vae_decoder_s: Time


class BenchTeacher(Frozen):
    name: str
    params: Count
    macs: Count
    peak_memory_bytes: Count
    measured_peak_bytes: int | None = later(None)  # of an eager call on a GPU, weights included
    unet_latency_s: Time
    image_latency_s: Estimate | None = None
    image_parts: ImageParts | None = None


class BenchStudent(Frozen):
    """One student, measured in pairs with its teacher; a ratio is student / teacher."""

    name: str
    source: str
    params: Count
    macs: Count
    peak_memory_bytes: Count
    measured_peak_bytes: int | None = later(None)  # of an eager call on a GPU, weights included
    removed: tuple[str, ...]
    replaced: dict[str, str]
    plan_sha256: str | None = None
    unet_latency_s: Time
    paired_teacher_latency_s: Time
    unet_latency_ratio: Ratio
    guided_latency_ratio: Ratio | None = None  # at the batch that classifier-free guidance runs
    predicted_ratio: Number | None = None
    predicted_low: Number | None = None
    predicted_high: Number | None = None
    predicted_guided: bool = later(False)  # it is of the guided step's ratio
    image_latency_s: Estimate | None = None
    image_latency_ratio: Ratio | None = None
    warning: str | None = later(None)
    quality: dict[str, Metric] = Field(default_factory=dict)

    @property
    def predicted_latency_ratio(self) -> Estimate:
        """The measured ratio that was predicted: the guided step's where the plan was made for its batch."""
        return (self.guided_latency_ratio if self.predicted_guided else None) or self.unet_latency_ratio


class BenchSchedule(Frozen):
    """One schedule on the teacher or a student, as whole images in pairs with the teacher; a ratio is to its image."""

    name: str
    source: str
    on: str  # the UNet that it runs
    schedule_sha256: str
    macs_per_image: Count  # of the UNet's calls, as run
    macs_ratio: Factor  # to the same UNet without the schedule
    predicted_ratio: float | None = None
    image_latency_s: Estimate | None = None
    image_latency_ratio: Ratio | None = None
    warning: str | None = None
    quality: dict[str, Metric] = Field(default_factory=dict)


class Pipeline(Frozen):
    """How an image is made: `steps` UNet calls at batch 2 where `guidance_scale` is above 1."""

    steps: Count
    guidance_scale: float
    composed: bool  # True: from the measured parts; False: the pipeline itself was run from prompt to pixels


class Drawing(Frozen):
    """The images of one caption by teacher and students (in their order) from one seed, and the real picture.

    Each is a small PNG in base64.
    """

    caption: str
    seed: int
    real: str
    teacher: str
    students: tuple[str, ...]


class BenchResult(UNetRun, schema="asdm.bench/1"):
    """`asdm.bench/1`: teacher and students, measured in one process, in pairs."""

    backend: str = "eager"
    teacher_config_sha256: str
    pipeline: Pipeline | None = None
    teacher: BenchTeacher
    students: tuple[BenchStudent, ...]
    schedules: tuple[BenchSchedule, ...] = later(())  # on the teacher and on students
    drawings: tuple[Drawing, ...] = later(())  # those that were asked to be kept
    out_of_memory: dict[str, str] = later({})  # what was left out for want of memory → the error

    @model_validator(mode="after")
    def _drawn_by_all(self) -> Self:
        """Every drawing is one of each student; those on schedules come after them."""
        if few := next((one for one in self.drawings if len(one.students) < len(self.students)), None):
            raise ValueError(f"a drawing must be by all {len(self.students)} students, got {len(few.students)}")
        return self

    def _repr_html_(self) -> str:
        """Teacher and students as ratios, for notebooks."""
        teacher = self.teacher
        macs, unit = mac_unit(teacher.macs)
        params = f"{teacher.params / 1e6:.1f}"
        rows = [[f"{teacher.name} (teacher)", params, f"{teacher.macs / macs:.1f}", "1×", "", ""]]
        rows += [_bench_row(student, macs) for student in self.students]
        head = ["model", "M parameters", unit, "UNet latency", "predicted", "image latency"]
        where = f"{self.backend}, {self.dtype} on {self.device}, {self.threads} threads, batch {self.batch}"
        return notebook.table(f"{self.family} and its students, student / teacher", head, rows, f"{where}.")


def _bench_row(student: BenchStudent, macs: float) -> list[str]:
    def ratio(value: Estimate | None) -> str:
        return "" if value is None else f"{value.median:.2f}× [{value.low:.2f}, {value.high:.2f}]"

    own = f", measured {ratio(student.guided_latency_ratio)} in a guided step" if student.predicted_guided else ""
    return [
        student.name,
        f"{student.params / 1e6:.1f}",
        f"{student.macs / macs:.1f}",
        ratio(student.unet_latency_ratio),
        "" if student.predicted_ratio is None else f"{student.predicted_ratio:.2f}×{own}",
        ratio(student.image_latency_ratio),
    ]
