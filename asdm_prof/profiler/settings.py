"""The settings of `asdm-prof profile`."""

from __future__ import annotations

from dataclasses import dataclass

from asdm.models.settings import Setup


@dataclass(frozen=True)
class ProfileSettings(Setup):
    """How to measure: the defaults are what `asdm-prof profile sd15` does."""

    backend: str = "eager"
    time_budget_s: float = 180.0  # of all of it: at 4 s a call SD 1.5 gets its five rounds
    min_rounds: int = 5  # of A B B A: ten hooked and ten bare calls
    target: float = 0.02  # relative half width of the median's 95 % interval
    time_components: bool = False
