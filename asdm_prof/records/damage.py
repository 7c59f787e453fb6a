"""What edits do to the output, alone, in pairs and together."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from asdm.plan.edits import AnyEdit
from asdm.records.measurement import Count, Number, Positive
from asdm.utils.record import Frozen, Record, later
from asdm.utils.sizes import Size
from asdm_prof.records.unfinished import UnfinishedRun


class Work(Frozen):
    """What a run of `sensitivity` took, in the teacher's forwards (by MACs) and in seconds."""

    students: Count
    plain_forwards: float  # of the loop that runs every student from the start
    least_forwards: float  # every distinct beginning of a forward once
    done_forwards: float
    seconds: float  # of everything, loading included
    forward_s: float  # of those, inside the UNets
    least_s: float  # what the least forwards took of that
    reached: float  # least_s / seconds: 1 would be a run that does nothing but the least


class Interval(Frozen):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def _is_error(damage: Interval) -> Interval:
    if damage.value < 0:
        raise ValueError(f"a damage is a mean square error and cannot be negative, got {damage.value}")
    return damage


MeanSquare = Annotated[Interval, AfterValidator(_is_error)]


class EditDamage(Frozen):
    """One edit, with what must go along for it to be legal, and what it does to the output."""

    edit: AnyEdit
    also: tuple[AnyEdit, ...] = ()
    damage: MeanSquare  # mean square error of the output per element
    by_prompt: tuple[float, ...]
    by_timestep: tuple[float, ...]
    clip_score_change: Interval | None = None  # of pictures drawn from the same seeds, less the teacher's

    @property
    def edits(self) -> tuple[AnyEdit, ...]:
        return (self.edit, *self.also)


class DamagePair(Frozen):
    """Two edits by their places in the list, and the damage of both beyond the sum of each."""

    first: Count
    second: Count
    damage: Number


class JointDamage(Frozen):
    """One random plan: what the edits' damages predict, by their sum and with pairs, and what its student does."""

    edits: tuple[AnyEdit, ...]
    summed: Number
    with_pairs: Number
    damage: MeanSquare


class Fit(Frozen):
    """How well predictions order and meet measured joint damages; intervals by bootstrap over plans."""

    spearman: Interval
    r2: Interval  # of the predictions as they are: 1 − squared errors / variance
    r2_line: Interval  # of the best straight line through them: the squared correlation


class Additivity(Frozen):
    """Can damages be added up? The planner's way of predicting, and both ways with intervals."""

    spearman: float
    r2: float
    used: Literal["sum", "pairs"]  # what the planner predicts by: the sum where it does, else with pairs
    summed: Fit
    with_pairs: Fit
    plans: tuple[JointDamage, ...]


class Agreement(Frozen):
    """Rank correlation of a cheap score with measured damage over single edits: what it is worth without weights."""

    score: str
    spearman: Interval
    edits: int


class TeacherDamage(Record):
    """Damage to a teacher's output: of which teacher, on which examples of a data set, and where it was measured."""

    created_utc: str
    command: str
    family: str
    weights: str
    weights_sha256: str
    teacher_config_sha256: str
    data: str
    split: str
    prompts: Count
    seed: int
    dtype: str
    device: str
    threads: Count
    size: Size
    prediction_type: str  # what the output is: epsilon or v_prediction


class Damage(TeacherDamage, schema="asdm.damage/1"):
    """`asdm.damage/1`: what each legal edit does to a teacher's output, and whether that adds up."""

    timesteps: tuple[int, ...]
    teacher_power: Positive  # mean square of the teacher's output per element, to set damages in relation to
    edits: tuple[EditDamage, ...]
    dropped: tuple[EditDamage, ...] = later(())  # by racing: measured on few pictures, and beaten there
    units_sha256: str | None = later(None)  # of the library that replaced units were taken from
    pairs: tuple[DamagePair, ...] = ()  # empty where the sum does
    additivity: Additivity | None = None
    agreement: tuple[Agreement, ...] = ()
    work: Work
    environment: dict[str, str]

    @model_validator(mode="after")
    def _pairs_are_known(self) -> Self:
        if wrong := next((pair for pair in self.pairs if max(pair.first, pair.second) >= len(self.edits)), None):
            raise ValueError(f"a pair is of edits {wrong.first} and {wrong.second}, of {len(self.edits)}")
        return self


class DamageBatch(Record, schema="asdm.damage-batch/1"):
    """The sums of one batch of prompts; batches add up."""

    samples: tuple[tuple[tuple[float, ...], ...], ...]  # sets, prompts, timesteps
    overlap: tuple[tuple[float, ...], ...]  # sets, sets; times the batch's prompts
    teacher_power: float  # times the batch's prompts
    seconds: float
    forward_s: float  # of those, inside the UNets


class DamageRun(UnfinishedRun, schema="asdm.damage-run/1"):
    """`asdm.damage-run/1`: what an unfinished run has measured so far."""

    batches: tuple[DamageBatch, ...] = ()
