"""The settings of `asdm-prof validate`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ValidateSettings:
    """How many plans, and how long each is measured; all else is as the profile was taken."""

    plans: int = 12
    seed: int = 0
    weights: str | None = None  # None: the profile's
    time_budget_s: float = 90.0  # of one plan
    min_rounds: int = 3  # of teacher, student, student, teacher: six pairs
    target: float = 0.005  # half width of a ratio's 95 % interval
