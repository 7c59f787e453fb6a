"""Predicted against measured, plan by plan, and what that taught."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asdm.plan.edits import AnyEdit
from asdm.records.measurement import Number, Positive, Share, UNetRun
from asdm.utils.record import Frozen
from asdm_prof.records.unfinished import UnfinishedRun


class ValidatedPlan(Frozen):
    """One random plan: what was predicted, and what its student measured in pairs with the teacher."""

    predicted_ratio: Number
    low: Number  # the prediction's 95 % interval
    high: Number
    measured_ratio: Positive
    measured_low: Number
    measured_high: Number
    saves: dict[str, Number]  # kind of edit (`op`) → what it was predicted to save, as a share of the teacher
    teacher_s: tuple[float, ...]  # raw samples; the i-th of both are neighbours
    student_s: tuple[float, ...]
    edits: tuple[AnyEdit, ...]

    @property
    def error(self) -> float:
        """Measured less predicted, as a fraction of the teacher's latency."""
        return self.measured_ratio - self.predicted_ratio


class Correction(Frozen):
    """What the errors teach: a student is slower than predicted by `factors[op]` of what edits of that kind save."""

    factors: dict[str, Annotated[float, Field(ge=-10, le=10)]]
    rms_without: Number
    rms_with: Number  # leave-one-out: each plan is corrected by what the others taught
    helps: bool  # whether that is less


class Validation(UNetRun, schema="asdm.validate/1"):
    """`asdm.validate/1`: predicted against measured on random legal plans; errors are fractions of the teacher."""

    teacher_config_sha256: str
    profile_sha256: str
    mape: Number  # mean absolute error
    p95: Number  # 95 % of the absolute errors are below it
    bias: Number  # mean error; above 0: students are slower than predicted
    coverage: Share  # how often the prediction's 95 % interval held
    rank_correlation: Number
    correction: Correction
    sigma: Annotated[float, Field(ge=0, le=1e4)]  # root mean square error of a prediction, corrected where that helps
    calibrated_coverage: Share  # as `coverage`, with intervals from the other plans' errors
    within_budget: Share  # how often the tightest budget accepted at confidence 0.95 held, from the other plans
    plans: Annotated[tuple[ValidatedPlan, ...], Field(min_length=1)]

    @property
    def blur(self) -> float:
        """How sharp the measured ratios are: the mean half width of their 95 % intervals."""
        return sum(plan.measured_high - plan.measured_low for plan in self.plans) / (2 * len(self.plans))

    @property
    def is_blurred(self) -> bool:
        """Whether the errors are no larger than the measurements are sharp, and so say little of the predictions."""
        return self.blur >= self.mape

    @property
    def factors(self) -> dict[str, float]:
        """The correction that cross-validation approved; empty where it helped nothing."""
        return self.correction.factors if self.correction.helps else {}


class ValidationRun(UnfinishedRun, schema="asdm.validate-run/1"):
    """`asdm.validate-run/1`: what an unfinished run has measured so far."""

    plans: tuple[ValidatedPlan, ...] = ()
