"""Schedules as data: for every call of the UNet in an image, the network that runs and what it does not compute.

What a pass does not recompute it inherits from the last step that computed it, or forecasts from the last few. Places
are named as in a UNet: `unet` (the whole output), a block, a layer (`up_blocks.3.layer.2`), a unit, a sampler, and of a
Transformer unit `….self_attention` or `….cross_attention`; these two words alone mean those of every unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asdm.plan.edits import MeasuredAt, Prediction, Proof
from asdm.utils.record import Record, later

TEACHER = "teacher"
UNET = "unet"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Forecast(_Strict):
    """A polynomial through the last kept values: Taylor's (TaylorSeer) or Chebyshev's by ridge (Spectrum)."""

    kind: Literal["taylor", "chebyshev"] = "taylor"
    order: int = Field(1, ge=1, le=3)

    @property
    def values(self) -> int:
        """Kept values that it looks back on; with fewer, the order is lower."""
        return self.order + (1 if self.kind == "taylor" else 2)


class Pass(_Strict):
    """One way of running a step; `unconditional` is what the half of the empty or negative prompt inherits instead.

    `drop` does not run that half: the step has no guidance. With `value` residual, a unit inherits what it adds to its
    input, which passes through it; with `value` clean, `unet` inherits the clean latent that it predicted.
    """

    network: str = TEACHER
    inherit: tuple[str, ...] = ()
    unconditional: tuple[str, ...] | Literal["drop"] | None = None  # None: as `inherit`
    value: Literal["output", "residual", "clean"] = "output"
    forecast: Forecast | None = None  # None: the last kept value as it is
    mean_of_halves: bool = False  # inherit the mean of both halves' values, where one half alone runs (T-GATE)


class Schedule(Record, schema="asdm.schedule/1"):
    """`asdm.schedule/1`: passes by name, and the name of the pass of every step, the noisiest first."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    name: str = "schedule"
    family: str
    teacher_config_sha256: str | None = None
    networks: dict[str, str] = Field(default_factory=dict)  # besides the teacher: a student's name → its folder
    passes: dict[str, Pass]
    steps: tuple[str, ...] = Field(min_length=1)

    sampler: str | None = later(None)  # class of the scheduler that it was planned for
    weights_sha256: str | None = later(None)
    guidance_scale: float | None = later(None)
    budget: str | None = later(None)
    budget_ratio: float | None = later(None)  # of the whole image's latency
    damage_from: str | None = later(None)
    predicted: Prediction | None = later(None)  # of the whole image
    predicted_damage: float | None = later(None)  # mean square error of the final latent
    proof: Proof | None = later(None)
    profile_sha256: str | None = later(None)
    steps_damage_sha256: str | None = later(None)
    measured_at: MeasuredAt | None = later(None)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for number, name in enumerate(self.steps):
            if name not in self.passes:
                raise ValueError(
                    f"step {number} is {name!r}, which is not a pass; choose from {', '.join(self.passes)}"
                )
        for name, one in self.passes.items():
            known = (TEACHER, *self.networks)
            if one.network not in known:
                raise ValueError(f"pass {name} runs {one.network!r}; choose from {', '.join(known)}")
        return self

    def pass_at(self, step: int) -> Pass:
        return self.passes[self.steps[step]]

    def not_made_for(self, sampler: str, weights_sha256: str | None) -> str | None:
        """A warning where the schedule was planned for another sampler or other weights, or None."""
        apart = [
            f"{what} {used} (planned for {planned})"
            for what, used, planned in (
                ("sampler", sampler, self.sampler),
                ("weights", (weights_sha256 or "")[:12], self.weights_sha256 and self.weights_sha256[:12]),
            )
            if used and planned and used != planned
        ]
        warning = f"{self.name} was planned on another calibration: {', '.join(apart)}; its damage here is unknown."
        return warning if apart else None


def by_name(students: Iterable[str]) -> dict[str, str]:
    """Students (folders, plans or presets) by the names that a schedule gives them.

    Raises ValueError where two have the same name, or one has the teacher's.
    """
    named = dict[str, str]()
    for source in students:
        name = Path(source).name.removesuffix(".json") or source
        if other := TEACHER if name == TEACHER else named.get(name):
            whose = "the teacher's" if other == TEACHER else f"also that of {other}"
            raise ValueError(f"{source} would be called {name!r}, which is {whose}; rename one of them.")
        named[name] = source
    return named
