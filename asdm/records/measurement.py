"""What the commands of `asdm` report, as plain values: no torch in here, so that renderers read them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from asdm.utils import notebook
from asdm.utils.io import Frozen, Record, later


class Estimate(Frozen):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        return Estimate(median=self.median * factor, low=self.low * factor, high=self.high * factor)


class Latency(Estimate):
    """Seconds: median, 95 % interval of the median, and every raw sample in the order it was taken."""

    samples: tuple[float, ...]


class Run(Record):
    """What every record of a measured run says of itself: what was run, and on which machine."""

    created_utc: str
    command: str
    family: str
    dtype: str
    device: str
    threads: int
    environment: dict[str, str]

    @model_serializer(mode="wrap")
    def _in_order(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A file tells what was run first, then what was found as its record declares it, then the environment."""
        found = dumped(self)
        places = {name: i for i, name in enumerate(RUN_FIRST)} | {"environment": len(RUN_FIRST) + 1}
        return {name: found[name] for name in sorted(found, key=lambda name: places.get(name, len(RUN_FIRST)))}


class UNetRun(Run):
    """A run of whole UNets: with which weights, in which backend, at which shape."""

    weights: str
    backend: str
    seed: int
    batch: int
    size: int  # pixels per side of the image


RUN_FIRST = (
    "schema_", "schema", "created_utc", "command", "family", "title", "weights", "config_sha256", "backend", "dtype",
    "device", "threads", "seed", "batch", "size",
)  # fmt: skip


class HostUse(Frozen):
    """What was taken of a machine during a run: by others, in cores on average, and by the kernel for us."""

    others_cores: float  # other programs
    steal_cores: float  # a hypervisor, for other machines
    kernel_share: float | None = later(None)  # of this process's CPU seconds
    page_faults_per_s: float | None = later(None)  # of this process, that no disk was read for


class Macs(Frozen):
    """Multiply-adds by kind of operation; one MAC is two FLOPs."""

    conv_macs: int = 0
    linear_macs: int = 0
    attention_macs: int = 0

    @property
    def macs(self) -> int:
        return self.conv_macs + self.linear_macs + self.attention_macs

    def __add__(self, other: Macs) -> Macs:
        return Macs(
            conv_macs=self.conv_macs + other.conv_macs,
            linear_macs=self.linear_macs + other.linear_macs,
            attention_macs=self.attention_macs + other.attention_macs,
        )


SMALL_MACS = 1e10  # of a whole UNet, below which it and its parts are counted in millions


def mac_unit(whole: float) -> tuple[float, str]:
    """The unit in which a model of so many MACs and its parts are shown, as (size, name)."""
    return (1e6, "MMAC") if whole < SMALL_MACS else (1e9, "GMAC")


class Tensors(Frozen):
    """Some of a model's parameters: names, how many numbers, and their bytes."""

    names: tuple[str, ...]
    params: int
    bytes: int


class FreezeAudit(Frozen):
    """Which of a student's parameters learn, which are frozen, and which are the teacher's own memory."""

    trainable: Tensors
    frozen: Tensors
    shared_with_teacher: Tensors


class DiffRow(Frozen):
    """A unit or piece of glue of the teacher, and what became of it in the student."""

    fqn: str
    label: str
    kind: str
    block: str  # empty for glue outside the blocks
    layer: int | None
    fate: Literal["stays", "goes", "replaced"]
    replacement: str | None
    student_fqn: str | None
    params: int
    macs: int
    student_params: int
    student_macs: int


class BuildResult(Record):
    """`asdm.build/1`: what a student is made of."""

    SCHEMA: ClassVar[str] = "asdm.build/1"
    schema_: Literal["asdm.build/1"] = Field("asdm.build/1", alias="schema")
    name: str
    family: str
    weights: str
    params: int
    macs: int
    teacher_params: int
    teacher_macs: int
    removed: tuple[str, ...]
    replaced: dict[str, str]
    name_map: dict[str, str]  # student's fqn → teacher's fqn
    plain_diffusers: bool
    plan_sha256: str
    warning: str | None = later(None)
    stage1: str | None = None  # where the grafted blocks' weights come from
    audit: FreezeAudit | None = None
    diff: tuple[DiffRow, ...] = ()


class ExportResult(Record):
    """`asdm.export/1`: a UNet in another form, and how near its output is to PyTorch's."""

    SCHEMA: ClassVar[str] = "asdm.export/1"
    schema_: Literal["asdm.export/1"] = Field("asdm.export/1", alias="schema")
    family: str
    to: str
    dtype: str
    params: int
    size: int | None = None  # pixels per side; None where nothing was traced
    batch: int | None = None  # None where it is free
    why_fixed: str | None = None
    difference: float | None = None  # largest, as a share of the largest output
    plain_diffusers: bool | None = None


@dataclass(frozen=True)
class Measure:
    """A quality metric: its name in files, the one that papers give it, whether more is better, and its least value."""

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
    )
}


class Metric(Frozen):
    """One quality metric of a student, beside its teacher's value and the teacher's own noise."""

    value: float
    low: float
    high: float
    teacher: float | None = None
    noise_floor: float | None = None


class ImageParts(Frozen):
    """Seconds of one whole image: encoding the prompt, one guided UNet step, decoding the latent."""

    text_encoder_s: Latency
    unet_step_s: Latency
    vae_decoder_s: Latency


class BenchTeacher(Frozen):
    name: str
    params: int
    macs: int
    peak_memory_bytes: int
    unet_latency_s: Latency
    image_latency_s: Estimate | None = None
    image_parts: ImageParts | None = None


class BenchStudent(Frozen):
    """One student, measured in pairs with its teacher; a ratio is student / teacher."""

    name: str
    source: str
    params: int
    macs: int
    peak_memory_bytes: int
    removed: tuple[str, ...]
    replaced: dict[str, str]
    plan_sha256: str | None = None
    unet_latency_s: Latency
    paired_teacher_latency_s: Latency
    unet_latency_ratio: Estimate
    guided_latency_ratio: Estimate | None = None  # at the batch that classifier-free guidance runs
    predicted_ratio: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    image_latency_s: Estimate | None = None
    image_latency_ratio: Estimate | None = None
    warning: str | None = later(None)
    quality: dict[str, Metric] = Field(default_factory=dict)


class Pipeline(Frozen):
    """How an image is made: `steps` UNet calls at batch 2 where `guidance_scale` is above 1."""

    steps: int
    guidance_scale: float
    composed: bool  # True: from the measured parts; False: the pipeline itself was run from prompt to pixels


class Drawing(Frozen):
    """One caption as teacher and students (in their order) drew it from one seed, beside the real picture.

    Each is a small PNG in base64.
    """

    caption: str
    seed: int
    real: str
    teacher: str
    students: tuple[str, ...]


class BenchResult(UNetRun):
    """`asdm.bench/1`: teacher and students, measured in one process, in pairs."""

    SCHEMA: ClassVar[str] = "asdm.bench/1"
    schema_: Literal["asdm.bench/1"] = Field("asdm.bench/1", alias="schema")
    backend: str = "eager"
    teacher_config_sha256: str
    pipeline: Pipeline | None = None
    teacher: BenchTeacher
    students: tuple[BenchStudent, ...]
    drawings: tuple[Drawing, ...] = later(())  # those that were asked to be kept

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
    def ratio(found: Estimate | None) -> str:
        return "" if found is None else f"{found.median:.2f}× [{found.low:.2f}, {found.high:.2f}]"

    return [
        student.name,
        f"{student.params / 1e6:.1f}",
        f"{student.macs / macs:.1f}",
        ratio(student.unet_latency_ratio),
        "" if student.predicted_ratio is None else f"{student.predicted_ratio:.2f}×",
        ratio(student.image_latency_ratio),
    ]


class DistillRun(Record):
    """`asdm.run/1`: what a folder is being trained for; another run does not go on in it."""

    SCHEMA: ClassVar[str] = "asdm.run/1"
    schema_: Literal["asdm.run/1"] = Field("asdm.run/1", alias="schema")
    created_utc: str
    command: str
    identity: dict[str, JsonValue]  # may never change
    tuning: dict[str, JsonValue]  # may change where the user says so
    amended: tuple[dict[str, JsonValue], ...] = ()  # what did, and from which step on
    environment: dict[str, str]


class MemoryEstimate(Frozen):
    """Bytes that training takes on one device; activations are those that the backward needs, counted."""

    weights: int
    encoders: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in type(self).model_fields)


class StagePlan(Frozen):
    """A stage before it runs: what learns, from what, for how long, in how much memory."""

    name: str
    mode: str
    steps: int
    weights: dict[str, float]
    places: dict[str, int]  # term → maps that are compared
    left_out: tuple[str, ...]  # terms that this student has no place for
    audit: FreezeAudit
    memory: MemoryEstimate


class StageResult(Frozen):
    """A stage after it ran; losses are unweighted means of the first and last tenth of its steps."""

    name: str
    mode: str
    steps: int
    seconds: float
    first: dict[str, float]
    last: dict[str, float]
    audit: FreezeAudit
    teacher_sha256: str  # computed anew at the end: the teacher, and what is shared with it, kept every bit
    broken_examples: int = 0
    overhead: float  # share of the time that was neither forward, backward nor step (optimizer, running average)


class DistillResult(Record):
    """`asdm.distill/1`: what a distillation did."""

    SCHEMA: ClassVar[str] = "asdm.distill/1"
    schema_: Literal["asdm.distill/1"] = Field("asdm.distill/1", alias="schema")
    created_utc: str
    name: str
    family: str
    data: str
    seed: int
    plan_sha256: str
    student_sha256: str | None  # hash of the last stage's student's weights; None after a stage before it
    stages: tuple[StageResult, ...]
    paused_at: int | None = later(None)  # step of all stages together
