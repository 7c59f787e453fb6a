"""`asdm distill`: a run, its stages before and after training, and the memory that they need."""

from __future__ import annotations

from pydantic import JsonValue

from asdm.records.build import FreezeAudit
from asdm.records.measurement import Count, Number, Seconds
from asdm.utils.record import Frozen, Record, later


class DistillRun(Record, schema="asdm.run/1"):
    """`asdm.run/1`: the run that a training folder belongs to; another run is refused in it."""

    created_utc: str
    command: str
    identity: dict[str, JsonValue]  # may never change
    tuning: dict[str, JsonValue]  # may change where the user says so
    amended: tuple[dict[str, JsonValue], ...] = ()  # what did, and from which step on
    environment: dict[str, str]


class MemoryEstimate(Frozen):
    """Bytes that training takes on one device; activations are those that the backward needs, counted.

    Encoding pictures is over when these begin, so the total holds the larger of the two.
    """

    weights: Count
    encoders: Count
    gradients: Count
    optimizer: Count
    average: Count
    activations: Count
    encoding: Count  # activations of the VAE's or text encoder's largest call

    @property
    def peak(self) -> int:
        return max(self.activations, self.encoding)

    @property
    def total(self) -> int:
        return self.weights + self.encoders + self.gradients + self.optimizer + self.average + self.peak


class StagePlan(Frozen):
    """A stage before it runs: what learns, from what, for how long, in how much memory."""

    name: str
    mode: str
    steps: Count
    weights: dict[str, float]
    places: dict[str, int]  # term → maps that are compared
    left_out: tuple[str, ...]  # terms that this student has no place for
    audit: FreezeAudit
    memory: MemoryEstimate


class StageResult(Frozen):
    """A stage after it ran; losses are unweighted means of the first and last tenth of its steps."""

    name: str
    mode: str
    steps: Count
    seconds: Seconds
    first: dict[str, Number]
    last: dict[str, Number]
    audit: FreezeAudit
    teacher_sha256: str  # recomputed at the end: the teacher, and what is shared with it, kept every bit
    broken_examples: Count = 0
    why_skipped: dict[str, int] = later({})  # reason → how many of them
    first_skipped: dict[str, tuple[str, ...]] = later({})  # reason → the first of them by name
    scaler: dict[str, JsonValue] | None = later(None)  # of fp16's gradients; the next stage begins with its state
    overhead: float  # share of the time that was neither encoding, forward, backward nor step (optimizer, EMA)
    phases: dict[str, float] = later({})  # share of waiting for data, of encoding and of computing in the time
    gates: dict[str, tuple[float, ...]] = later({})  # CLME's convolution → how far each kernel's gate opened, 0 to 1


class HeldOut(Frozen):
    """Errors on held-out pictures: mean square per element of the difference to the teacher's output."""

    error: float
    untrained: float  # of the same plan's student before any training
    teacher_power: float  # mean square of the teacher's output
    pictures: Count


class DistillResult(Record, schema="asdm.distill/1"):
    """`asdm.distill/1`: what a distillation did."""

    created_utc: str
    name: str
    family: str
    data: str
    seed: int
    plan_sha256: str
    student_sha256: str | None  # hash of the last stage's student's weights; None after a stage before it
    stages: tuple[StageResult, ...]
    paused_at: int | None = later(None)  # step of all stages together
    held_out: HeldOut | None = later(None)  # with --hold-out
