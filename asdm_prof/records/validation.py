"""Predicted against measured, plan by plan, and what that taught."""

from __future__ import annotations

from asdm.plan.edits import AnyEdit
from asdm.records.measurement import UNetRun
from asdm.utils.io import Frozen


class ValidatedPlan(Frozen):
    """One random plan: what was predicted, and what its student measured in pairs with the teacher."""

    predicted_ratio: float
    low: float  # the prediction's 95 % interval
    high: float
    measured_ratio: float
    measured_low: float
    measured_high: float
    saves: dict[str, float]  # kind of edit (`op`) → what it was predicted to save, as a share of the teacher
    teacher_s: tuple[float, ...]  # raw samples; the i-th of both are neighbours
    student_s: tuple[float, ...]
    edits: tuple[AnyEdit, ...]

    @property
    def error(self) -> float:
        """Measured less predicted, as a fraction of the teacher's latency."""
        return self.measured_ratio - self.predicted_ratio


class Correction(Frozen):
    """What the errors teach: a student is slower than predicted by `factors[op]` of what edits of that kind save."""

    factors: dict[str, float]
    rms_without: float
    rms_with: float  # leave-one-out: each plan is corrected by what the others taught
    helps: bool  # whether that is less


class Validation(UNetRun, schema="asdm.validate/1"):
    """`asdm.validate/1`: predicted against measured on random legal plans; errors are fractions of the teacher."""

    teacher_config_sha256: str
    profile_sha256: str
    mape: float  # mean absolute error
    p95: float  # 95 % of the absolute errors are below it
    bias: float  # mean error; above 0: students are slower than predicted
    coverage: float  # how often the prediction's 95 % interval held
    rank_correlation: float
    correction: Correction
    sigma: float  # root mean square error of a prediction, corrected where that helps
    calibrated_coverage: float  # as `coverage`, with intervals from the other plans' errors
    within_budget: float  # how often the tightest budget accepted at confidence 0.95 held, from the other plans
    plans: tuple[ValidatedPlan, ...]

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
