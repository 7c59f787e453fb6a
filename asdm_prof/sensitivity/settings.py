"""The settings of `asdm-prof sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.data.settings import SOURCES, Split
from asdm.evaluate.settings import Judge
from asdm.models.settings import SCHEDULERS, PictureSetup
from asdm.schedule.schedule import by_name
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


@dataclass(frozen=True)
class AcrossSteps:
    """What `asdm-prof sensitivity --across-steps` measures besides."""

    steps: Annotated[int, Option("Denoising steps (with --across-steps).", at_least=2)] = 30
    scheduler: Annotated[
        str | None,
        Option(
            f"Sampler (with --across-steps): {', '.join(SCHEDULERS)}; default: the weights' own.",
            choices=tuple(SCHEDULERS),
        ),
    ] = None
    guidance_scale: Annotated[
        float | None, Option("Guidance scale (with --across-steps); default: the family's.", at_least=0)
    ] = None
    ages: Annotated[
        int, Option("How many steps at most anything is inherited for (with --across-steps).", at_least=1, at_most=8)
    ] = 5
    student: Annotated[
        list[str] | None,
        Option("A student that may draw steps: a folder, a plan or a preset (with --across-steps); may be repeated."),
    ] = None

    inherit: Annotated[
        list[str] | None,
        Option(
            "Another pass to measure and time, by what it inherits, as self_attention,cross_attention or units of the "
            "UNet (with --across-steps); may be repeated."
        ),
    ] = None

    @property
    def by_name(self) -> dict[str, str]:
        """Students by the names that a schedule gives them; raises ValueError where two have the same."""
        return by_name(self.student or ())
