"""Profiles of one family side by side: whether ranks and plans of one hold in another."""

from __future__ import annotations

from asdm.plan.edits import MeasuredAt, Prediction
from asdm.records.measurement import Estimate
from asdm.utils.io import Frozen, Record


class ComparedProfile(Frozen):
    """One profile of a comparison; `name` says in what it differs from the others."""

    name: str
    source: str
    sha256: str
    measured_at: MeasuredAt
    latency_s: Estimate
    split_half: float  # rank correlation of its own odd and even runs: no other profile can agree better than this


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
    spearman: tuple[tuple[float, ...], ...]  # of the units' redundancy, profile by profile
    plans: tuple[ComparedPlan, ...] = ()
