"""A search for students: every one that was trained, and the front of those that were measured."""

from __future__ import annotations

from pydantic import Field

from asdm.plan.edits import AnyEdit, Prediction
from asdm.records.bench import Metric
from asdm.records.measurement import Estimate, UNetRun
from asdm.utils.io import Frozen


class Rung(Frozen):
    """A rung of successive halving: how many candidates reach it, and how long each has trained at its end."""

    candidates: int
    steps: int


class SearchedStudent(Frozen):
    """A candidate as it was last measured."""

    candidate: int
    rung: int
    steps: int  # of training
    edits: tuple[AnyEdit, ...]
    plan_sha256: str
    predicted: Prediction
    damage: float  # as planned: before any training
    ratio: Estimate  # measured UNet latency, student / teacher, in pairs
    student_s: tuple[float, ...]
    teacher_s: tuple[float, ...]
    macs: int
    params: int
    quality: dict[str, Metric]
    within_budget: bool
    in_front: bool  # no other student is both faster and better
    host: str  # a hash of the name of the machine that trained it
    folder: str  # the student's, below the output folder of that machine


class Search(UNetRun, schema="asdm.search/1"):
    """`asdm.search/1`: students that were planned, trained by successive halving, and measured; the best first."""

    study: str
    teacher_config_sha256: str
    weights_sha256: str
    profile_sha256: str
    damage_sha256: str | None
    budget: str
    budget_ratio: float
    metric: str  # by which students are ranked
    maximise: bool
    recipe: str
    data: str
    split: str
    learning_rate: float
    training_batch: int
    pictures: int
    rungs: tuple[Rung, ...]
    training_steps: int  # of all candidates together
    trials: dict[str, int]  # how the attempts ended
    students: tuple[SearchedStudent, ...]
    failed: dict[str, str] = Field(default_factory=dict)  # candidate → why it has no measurement

    def front(self) -> tuple[SearchedStudent, ...]:
        """The students that no other beats in both latency and quality, the fastest first."""
        return tuple(sorted((one for one in self.students if one.in_front), key=lambda one: one.ratio.median))
