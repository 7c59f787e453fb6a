"""Predicted against measured times of schedules."""

from __future__ import annotations

from asdm.records.measurement import Count, Number, Positive, UNetRun
from asdm.schedule.schedule import Pass
from asdm.utils.record import Frozen
from asdm_prof.records.unfinished import UnfinishedRun


class ValidatedSchedule(Frozen):
    """One random schedule: the UNet's time in an image, as a share of the plain one's, predicted and measured."""

    steps: tuple[str, ...]
    predicted_ratio: Positive
    measured_ratio: Positive
    schedule_s: tuple[float, ...]  # raw samples of the whole loop
    plain_call_s: tuple[float, ...]  # of a plain call, before and after each

    @property
    def error(self) -> float:
        """Measured less predicted, relative to the prediction."""
        return self.measured_ratio / self.predicted_ratio - 1


class ScheduleValidation(UNetRun, schema="asdm.validate-schedules/1"):
    """`asdm.validate-schedules/1`: predicted against measured times of random schedules."""

    profile_sha256: str
    guided: bool
    calls: Count
    passes: dict[str, Pass]
    mape: Number  # mean absolute relative error
    worst: Number
    bias: Number  # above 0: schedules are slower than predicted
    macs_exact: bool  # whether the MACs of every pass, counted as run, are those of the parts that it computes
    schedules: tuple[ValidatedSchedule, ...]


class ScheduleValidationRun(UnfinishedRun, schema="asdm.validate-schedules-run/1"):
    """`asdm.validate-schedules-run/1`: the schedules of an unfinished run."""

    schedules: tuple[ValidatedSchedule, ...] = ()
