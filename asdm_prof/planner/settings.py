"""The settings of `asdm-prof validate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.models.settings import Config
from asdm.utils.settings import Option


@dataclass(frozen=True)
class ValidateSettings:
    """How many plans, and how long each is measured; all else is as the profile was taken."""

    plans: Annotated[int, Option("Random legal plans to build and measure, 3 or more.", at_least=3)] = (
        12  # 3 for cross-validation
    )
    seed: Annotated[int, Option("Seed of the random plans.")] = 0
    weights: Annotated[str | None, Option("'random', a diffusers folder or a hub id; default: the profile's.")] = None
    config: Config = None
    time_budget_s: Annotated[
        float, Option("Seconds for each plan; fewer pairs if it runs out.", flag="--time-budget", above=0)
    ] = 90.0
    min_rounds: int = 3  # of teacher, student, student, teacher: six pairs
    target: float = 0.005  # half width of a ratio's 95 % interval
