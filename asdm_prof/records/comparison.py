"""Profiles of one family side by side: whether ranks and plans of one hold in another."""

from __future__ import annotations

from pydantic import model_validator

from asdm.plan.edits import MeasuredAt, Prediction
from asdm.records.measurement import Estimate, Number
from asdm.utils.record import Frozen, Record


class ComparedProfile(Frozen):
    """One profile of a comparison; `name` says in what it differs from the others."""

    name: str
    source: str
    sha256: str
    measured_at: MeasuredAt
    latency_s: Estimate
    split_half: Number  # rank correlation of its own odd and even runs: no other profile can agree better than this


class ComparedPlan(Frozen):
    """One plan priced by every profile of a comparison, in their order; None where it timed no such replacement."""

    name: str
    made_for: int | None  # the profile it was made from, where that is one of them
    budget_ratio: float | None
    predicted: tuple[Prediction | None, ...]


class Comparison(Record, schema="asdm.compare/1"):
    """`asdm.compare/1`: does a plan made for one runtime, dtype, thread count, size or batch hold in another?"""

    created_utc: str
    command: str
    family: str
    config_sha256: str
    profiles: tuple[ComparedProfile, ...]
    spearman: tuple[tuple[Number, ...], ...]  # of the units' redundancy, profile by profile
    plans: tuple[ComparedPlan, ...] = ()

    @model_validator(mode="after")
    def _all_by_all(self) -> Comparison:
        count = len(self.profiles)
        if [len(row) for row in self.spearman] != [count] * count:
            raise ValueError(f"spearman must have {count} rows of {count} values, one for each profile")
        for plan in self.plans:
            if len(plan.predicted) != count or not (plan.made_for is None or 0 <= plan.made_for < count):
                raise ValueError(f"{plan.name} must have a prediction by each of {count} profiles, and be made for one")
        return self
