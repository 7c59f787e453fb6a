"""Predicted against measured times of random schedules, each between two plain calls of the same network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from asdm.measure import clocks
from asdm.models import example_inputs, loading
from asdm.models.families import Family, load_family
from asdm.models.sources import weights_to_validate
from asdm.schedule.cost import macs_as_run
from asdm.schedule.legality import resolve
from asdm.schedule.schedule import Schedule
from asdm.schedule.unet import ScheduledUNet
from asdm.unet import blocks
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of
from asdm_prof.planner.schedule import draw
from asdm_prof.planner.schedule.passes import candidates
from asdm_prof.planner.schedule.prices import StepPrices, parts_of
from asdm_prof.planner.validation_run import check_profile, complete
from asdm_prof.records import Profile, ScheduleValidation
from asdm_prof.records.schedule_validation import ScheduleValidationRun, ValidatedSchedule

AGES = 3


@dataclass(frozen=True)
class ScheduleValidateSettings:
    """How many schedules of how many calls, each run how often."""

    schedules: int = 12
    calls: int = 6
    repeats: int = 1
    guided: bool = False
    seed: int = 0
    weights: str | None = None  # default: the profile's


def validate_schedules(
    family: str | Family,
    profile: Profile,
    settings: ScheduleValidateSettings = ScheduleValidateSettings(),
    run_file: Path | None = None,
    tell: Tell = lambda *_: None,
    command: str = "",
) -> ScheduleValidation:
    """Measure random schedules on a profile's network, with the weights that were asked for or the profile's.

    An unfinished run in `run_file` is resumed. Raises ValueError for a profile of another model and another run's file.
    """
    family = load_family(family) if isinstance(family, str) else family
    check_profile(profile, family)
    passes = {
        name: one for name, one in candidates(profile.topology, settings.guided).items() if one.value != "clean"
    }  # fmt: skip
    rng = np.random.default_rng(settings.seed)
    drawn = draw.draw(family.name, passes, {}, settings.calls, AGES, settings.schedules, rng)
    known = {name: value for name, value in vars(settings).items() if value is not None}
    sha256 = sha256_of([profile.sha256(), known, [list(one.steps) for one in drawn]])
    run = ScheduleValidationRun(run_sha256=sha256).resumed_from(run_file, "profile")
    weights = weights_to_validate(family, settings.weights, profile.weights)
    rest = _measure_each(family, weights, profile, settings, drawn[len(run.schedules) :], tell)
    run, about = complete(run, rest, run_file, profile, family)
    errors = np.array([one.error for one in run.schedules])
    return ScheduleValidation(
        **about, command=command, weights=weights, seed=settings.seed, guided=settings.guided,
        calls=settings.calls, passes=passes, mape=float(np.abs(errors).mean()), worst=float(np.abs(errors).max()),
        bias=float(errors.mean()), macs_exact=macs_are_exact(family, profile, passes), schedules=run.schedules,
    )  # fmt: skip


@torch.inference_mode()
def _measure_each(
    family: Family, weights: str, profile: Profile, settings: ScheduleValidateSettings, drawn: Sequence[Schedule],
    tell: Tell,
) -> Iterator[ValidatedSchedule]:  # fmt: skip
    """The last of a validation's schedules, on one network."""
    tell("building the network", 0, None)
    unet: Any = loading.load_unet(family, weights, profile.device, profile.dtype, profile.seed)
    batch = profile.batch * (2 if settings.guided else 1)
    inputs = example_inputs.unet_inputs(family, batch, profile.size, profile.device, profile.dtype, profile.seed)
    clock = clocks.clock_for(profile.device)
    prices = StepPrices.of(profile.model_copy(update={"guidance_scale": 8.0 if settings.guided else 1.0}))
    for _ in range(2):
        unet(**inputs)
    for n, schedule in enumerate(drawn, settings.schedules - len(drawn) + 1):
        tell(f"schedule {n} of {settings.schedules}", 0, None)
        yield _measure(unet, schedule, prices, inputs, clock, settings)


def _measure(
    unet: Any, schedule: Schedule, prices: StepPrices, inputs: dict[str, Any], clock: Any,
    settings: ScheduleValidateSettings,
) -> ValidatedSchedule:  # fmt: skip
    """The whole loop of one schedule, a plain call before and after it."""
    calls = len(schedule.steps)
    scheduled = ScheduledUNet(unet, schedule, guided=settings.guided)
    call = {name: value for name, value in inputs.items() if name != "timestep"}

    def image() -> None:
        scheduled.scheduler = SimpleNamespace(timesteps=torch.arange(calls, 0, -1).float())
        for t in scheduled.scheduler.timesteps:
            scheduled(timestep=t, **call)
            scheduled._sample = None  # the same latents at every step are no second call

    plain = [clocks.timed(lambda: unet(**inputs), clock)]
    whole = []
    for _ in range(settings.repeats):
        whole.append(clocks.timed(image, clock))
        plain.append(clocks.timed(lambda: unet(**inputs), clock))
    return ValidatedSchedule(
        steps=schedule.steps,
        predicted_ratio=sum(prices.steps_s(schedule)) / (calls * prices.full_s),
        measured_ratio=float(np.median(whole) / (calls * np.median(plain))),
        schedule_s=tuple(whole),
        plain_call_s=tuple(plain),
    )


def macs_are_exact(family: Family, profile: Profile, passes: Any) -> bool:
    """Whether every pass that inherits outputs has, as run on the meta device, the MACs of the parts that are left."""
    unet = loading.meta_unet(family)
    inputs = example_inputs.unet_inputs(family, 1, profile.size, "meta")
    for name, one in passes.items():
        if one.value != "output" or one.unconditional is not None:
            continue
        schedule = Schedule(family=family.name, passes={"full": passes["full"], name: one}, steps=("full", name))
        full, counted = macs_as_run(unet, schedule, inputs)
        step = resolve(blocks.topology(unet), schedule).steps[1].conditional
        inherited = {fqn for place in step.places for fqn in parts_of(profile.topology, place)}
        left = sum(part.macs for part in profile.parts if part.fqn not in inherited) / profile.batch
        if counted != (left if step.runs else 0) or full != profile.whole.macs / profile.batch:
            return False
    return True
