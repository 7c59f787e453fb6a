"""Ways to make a student against each other, by quality and latency."""

from __future__ import annotations

from pydantic import JsonValue

from asdm.plan.edits import AnyEdit
from asdm.records.measurement import Estimate
from asdm.utils.record import Frozen, Record, later
from benchmarks.equivalence import Judged


class CurvePoint(Frozen):
    """What a student in training draws: some of the pictures, judged as the finished one's are."""

    pictures: int  # seen so far
    metrics: dict[str, float]


class ProofResult(Frozen):
    """One student: a row trained from one seed. The teacher, which is not trained, has one with seed None."""

    seed: int | None = None
    seconds: float = 0.0  # of training steps, on whatever else the machine did meanwhile
    pictures: int = 0  # seen in training, repeats included
    peak_memory_bytes: int = 0  # counted: weights, encoders, gradients, moments, average, activations
    trainable: int = 0  # parameters of the last stage that learn
    student_sha256: str | None
    metrics: dict[str, Judged]
    curve: tuple[CurvePoint, ...] = later(())
    drawing_seconds: float = later(0.0)  # for all its pictures
    gates: dict[str, tuple[float, ...]] = later({})  # CLME's, by convolution: how far each kernel's opened, own first
    environment: dict[str, str] = later({})  # where it was trained and judged

    @property
    def drawn(self) -> int:
        """How many pictures it was judged by."""
        return len(next(one.samples for one in self.metrics.values() if one.of == "pictures"))


class ProofLatency(Frozen):
    """Paired UNet calls of a student and its teacher, in the order they were taken."""

    plan_sha256: str
    ratio: Estimate  # the median's
    mean_ratio: Estimate
    student_s: tuple[float, ...]
    teacher_s: tuple[float, ...]


class ProofRow(Frozen):
    """One way to make a student, and what came of it."""

    name: str
    what: str
    plan_name: str = ""
    recipe: str = ""  # the teacher has none
    rival: str | None = None  # the row that it is compared with at its own latency
    ablates: str | None = None  # the row that it is but for one thing
    plan_sha256: str | None = None
    edits: tuple[AnyEdit, ...] = ()
    params: int
    macs: int
    predicted_ratio: float | None = None
    latency: ProofLatency | None = None
    results: tuple[ProofResult, ...] = ()


class ProofTiming(Frozen):
    """How the latencies of a proof were measured."""

    created_utc: str
    command: str
    backend: str
    threads: int
    batch: int
    environment: dict[str, str]


class Proof(Record, schema="asdm.proof/1"):
    """`asdm.proof/1`: students of one teacher, made in several ways from equal training, and what each is worth."""

    created_utc: str
    command: str
    family: str
    teacher_config_sha256: str
    weights_sha256: str
    profile_sha256: str
    damage_sha256: str
    identity: dict[str, JsonValue]  # what all rows have alike: training, captions, drawing, budget
    noise: dict[str, Judged]  # the teacher with other seeds
    rows: tuple[ProofRow, ...]
    timing: ProofTiming | None = None
    splits: tuple[str, ...] = later(())  # of the data that each drawn caption is from
    environment: dict[str, str]

    @property
    def pictures(self) -> int:
        """How many the teacher and the decisive rows draw."""
        return self.rows[0].results[0].drawn

    def row(self, name: str) -> ProofRow | None:
        return next((row for row in self.rows if row.name == name), None)
