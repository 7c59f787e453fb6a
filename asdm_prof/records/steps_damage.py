"""What inheriting does to the output along the steps of an image, and to the image at its end."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from asdm.records.measurement import Count, Number, Positive, Seconds
from asdm.schedule.schedule import Pass
from asdm.utils.record import Frozen, Record, later
from asdm_prof.records.damage import Fit, MeanSquare, TeacherDamage
from asdm_prof.records.unfinished import UnfinishedRun

Error = Annotated[float, Field(ge=0, le=1e15)]
Row = Annotated[tuple[Error | None, ...], Field(min_length=1)]
Table = tuple[tuple[Row, ...], ...]


class PassDamage(Frozen):
    """One pass, measured on inputs of the teacher's own trajectory: mean square error of the guided output.

    `error[t][k][g]`: at step t, k + 1 steps after the last full one, which came g + 1 steps after the full one before
    it. None: not measured. A pass that inherits nothing has one value per step.
    """

    name: str
    error: Table


class FewerSteps(Frozen):
    """The teacher with fewer steps of the same sampler: the mean square error of its final latent."""

    steps: Count
    calls: Count
    damage: Error


class JointSchedule(Frozen):
    """One random schedule: what single damages predict of its final latent, and what it is."""

    steps: tuple[str, ...]
    summed: Number
    amplitudes: Number
    damage: MeanSquare


class StepsAdditivity(Frozen):
    """Whether damages of single steps predict that of a whole schedule; fits are of logarithms.

    Errors of unlike directions add as squares (`sum`), of like directions as amplitudes: (Σ √damage)². `factor` is what
    the prediction is multiplied by, `left_out` the mean relative error of a schedule by what the others taught.
    """

    used: Literal["sum", "amplitudes"]
    factor: Positive
    left_out: Number
    summed: Fit
    amplitudes: Fit


class StepsDamage(TeacherDamage, schema="asdm.steps-damage/1"):
    """`asdm.steps-damage/1`: damage of inheriting at every step, for one teacher, sampler and number of steps."""

    sampler: str  # class of the scheduler
    steps: Count
    calls: Count  # UNet calls for one image, of which a schedule is made
    guidance_scale: float
    networks: dict[str, str]  # students by name
    passes: dict[str, Pass]
    damages: tuple[PassDamage, ...]
    gains: tuple[Error, ...]  # mean square error of the final latent per mean square error of the output at a step
    latent_power: Positive  # mean square of the teacher's final latent
    fewer_steps: tuple[FewerSteps, ...] = ()
    schedules: tuple[JointSchedule, ...] = ()
    additivity: StepsAdditivity | None = None
    full_seconds: Positive  # one full call of one picture here, at both halves of guidance
    kept_seconds: Positive  # the same, which keeps all that any pass inherits
    half_seconds: Positive  # one full call at one half
    rest_seconds: Seconds  # of one picture: its prompts encoded and its latent decoded
    pass_seconds: dict[str, Positive] = later({})  # of passes that were named: one call of one picture
    seconds: float  # of the measurement
    environment: dict[str, str]

    @model_validator(mode="after")
    def _every_step(self) -> Self:
        if len(self.gains) != self.calls:
            raise ValueError(f"gains must have a value for each of {self.calls} calls, got {len(self.gains)}")
        if {one.name for one in self.damages} != self.passes.keys():
            raise ValueError("damages must be of the passes, one for each")
        if not self.pass_seconds.keys() <= self.passes.keys():
            raise ValueError("pass_seconds must be of passes")
        for one in self.damages:
            if len(one.error) != self.calls:
                raise ValueError(f"{one.name} must have errors at each of {self.calls} calls, got {len(one.error)}")
            if not self.passes[one.name].inherit and not any(map(len, one.error)):
                raise ValueError(f"{one.name} must have an error at some call")
        return self


class StepsBatch(Record, schema="asdm.steps-damage-batch/1"):
    """What one batch of prompts gave; sums over its prompts."""

    prompts: int
    errors: dict[str, list[Any]]
    gains: dict[int, tuple[float, float]]  # step → error of the output there and of the final latent
    fewer: dict[int, float]
    joint: list[list[float]]  # schedule, prompt
    latent_power: float


class StepsRun(UnfinishedRun, schema="asdm.steps-damage-run/1"):
    """`asdm.steps-damage-run/1`: the batches of an unfinished run."""

    batches: tuple[StepsBatch, ...] = ()
