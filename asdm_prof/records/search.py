"""A search for students: every one that was trained, and the front of those that were measured."""

from __future__ import annotations

from pydantic import Field, model_validator

from asdm.plan.edits import AnyEdit, Prediction
from asdm.records.bench import Metric
from asdm.records.measurement import Count, Number, Ratio, UNetRun
from asdm.utils.record import Frozen


class Rung(Frozen):
    """A rung of successive halving: how many candidates reach it, and how long each has trained at its end."""

    candidates: Count
    steps: Count


class SearchedStudent(Frozen):
    """A candidate as it was last measured."""

    candidate: Count
    rung: Count
    steps: Count  # of training
    edits: tuple[AnyEdit, ...]
    plan_sha256: str
    predicted: Prediction
    damage: Number  # as planned: before any training
    ratio: Ratio  # measured UNet latency, student / teacher, in pairs
    student_s: tuple[float, ...]
    teacher_s: tuple[float, ...]
    macs: Count
    params: Count
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
    training_batch: Count
    pictures: Count
    rungs: tuple[Rung, ...]
    training_steps: Count  # of all candidates together
    trials: dict[str, int]  # how the attempts ended
    students: tuple[SearchedStudent, ...]
    failed: dict[str, str] = Field(default_factory=dict)  # candidate → why it has no measurement

    @model_validator(mode="after")
    def _all_are_ranked(self) -> Search:
        if unranked := next((one for one in self.students if self.metric not in one.quality), None):
            raise ValueError(f"candidate {unranked.candidate} has no {self.metric}, by which students are ranked")
        return self

    def front(self) -> tuple[SearchedStudent, ...]:
        """The students that no other beats in both latency and quality, the fastest first."""
        return tuple(sorted((one for one in self.students if one.in_front), key=lambda one: one.ratio.median))
