"""The settings of `asdm-prof profile`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.models.settings import Backend, Setup, TimedDtype
from asdm.utils.settings import Option


@dataclass(frozen=True)
class ProfileSettings(Setup):
    """How to measure: the defaults are what `asdm-prof profile sd15` does."""

    backend: Backend = "eager"
    dtype: TimedDtype = "fp32"
    batch: Annotated[
        int,
        Option("Images per UNet call; default: 2 on a GPU, as in a guided step, else 1.", at_least=1, automatic=True),
    ] = 1
    time_budget_s: Annotated[float, Option("Seconds for the whole profile, in each process.", flag="--time-budget")] = (
        180.0  # at 4 s a call SD 1.5 gets its five rounds
    )
    min_rounds: int = 5  # of A B B A: ten hooked and ten bare calls
    target: float = 0.02  # relative half width of the median's 95 % interval
    options: Annotated[
        str,
        Option(
            "Replacements to time: fast (GRI and experts at the highest resolution), all (every one with every setting "
            "in every unit, in rounds), or names with commas between them."
        ),
    ] = "fast"
    time_components: Annotated[bool, Option("Time the text encoder and VAE decoder too.", flag="--components")] = False
