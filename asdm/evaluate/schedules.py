"""Schedules in a benchmark: on the teacher and on its students, as whole images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.settings import BenchSettings
from asdm.models import example_inputs, loading
from asdm.models.drawing import sampler_mark
from asdm.models.families import Family
from asdm.models.pipeline import pipeline
from asdm.schedule import source
from asdm.schedule.calls import calls_of
from asdm.schedule.cost import macs_as_run
from asdm.schedule.schedule import TEACHER, Pass, Schedule
from asdm.schedule.unet import ScheduledUNet


@dataclass
class ComparedSchedule:
    """A schedule on one UNet of the comparison."""

    name: str
    source: str
    on: ComparedUNet
    schedule: Schedule
    unet: ScheduledUNet
    macs: int  # of one image's UNet calls, at the benchmark's batch
    plain_macs: int
    warning: str | None

    @property
    def shapes(self) -> Any:
        return self.on.shapes


def check(sources: Sequence[str], shapes: Any, family: Family, settings: BenchSettings) -> None:
    """Raises ValueError for a schedule that does not exist or does not fit, before anything is loaded."""
    if sources and settings.backend != "eager":
        raise ValueError(
            f"schedules run whole pipelines in eager PyTorch; leave --schedule out with the backend {settings.backend}."
        )
    for name in sources:
        source.read_schedule(name, shapes, family.name, None if source.is_file(name) else settings.steps)


def open_schedules(
    sources: Sequence[str], everyone: Sequence[ComparedUNet], family: Family, settings: BenchSettings
) -> list[ComparedSchedule]:
    """Each schedule on the teacher, which comes first, and on every student that it is not made for another of."""
    if not sources:
        return []
    scheduler = pipeline(family, everyone[0].unet, settings).scheduler
    calls = calls_of(scheduler, settings.steps)
    opened = []
    for name in sources:
        for i, compared in enumerate(everyone):
            if i and source.is_file(name) and not source.is_of(name, compared.shapes):
                continue
            schedule = source.read_schedule(name, compared.unet, family.name, calls, scheduler)
            opened.append(_open(schedule, name, compared, scheduler, family, settings))
    return opened


def _open(
    schedule: Schedule, name: str, compared: ComparedUNet, scheduler: Any, family: Family, settings: BenchSettings
) -> ComparedSchedule:
    students = source.students_of(schedule, compared.unet, family, settings)
    meta: dict[str, Any] = {TEACHER: compared.shapes}
    meta |= source.students_of(schedule, compared.shapes, family, settings) if students else {}
    guided = settings.guided
    batch = settings.batch * (2 if guided else 1)
    inputs = example_inputs.unet_inputs(family, batch, settings.size, "meta", settings.dtype)
    plain = Schedule(family=family.name, passes={"full": Pass()}, steps=("full",))
    weights = loading.weights_sha256(compared.unet) if schedule.weights_sha256 else None
    unet = source.scheduled_unet(name, {TEACHER: compared.unet, **students}, schedule)
    unet.scheduler = scheduler
    return ComparedSchedule(
        name=name if compared.name == family.name else f"{name} on {compared.name}",
        source=name,
        on=compared,
        schedule=schedule,
        unet=unet,
        macs=sum(macs_as_run(meta, schedule, inputs, guided)),
        plain_macs=len(schedule.steps) * macs_as_run(compared.shapes, plain, inputs, guided)[0],
        warning=schedule.not_made_for(sampler_mark(scheduler), weights),
    )
