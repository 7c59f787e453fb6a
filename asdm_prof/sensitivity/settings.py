"""The settings of `asdm-prof sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.data.settings import SOURCES, Split
from asdm.evaluate.settings import Judge
from asdm.models.settings import PictureSetup
from asdm.utils.settings import Option


@dataclass(frozen=True)
class SensitivitySettings(PictureSetup):
    """What damage is measured on; `size`, `dtype`, … are the teacher's, and `batch` is not used."""

    data: Annotated[
        str | None, Option(f"Captioned pictures to measure on: {SOURCES}; default: emoji for the mini.")
    ] = None
    split: Split = "train"
    prompts: Annotated[int, Option("Pictures with their captions, 2 or more.", at_least=2)] = 64
    timesteps: Annotated[int, Option("Noise levels per picture, spread over the schedule.", at_least=1)] = 8
    units: Annotated[
        str | None,
        Option(
            "Library of units (asdm distill-units) to measure with: damage after fitting or training; default: as "
            "replacements are made of the weights."
        ),
    ] = None
    reuse: Annotated[
        bool, Option("Compute shared beginnings once, or run the plain loop to compare with.", flag="--reuse/--plain")
    ] = True
    judge: Judge = None
