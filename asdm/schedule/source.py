"""Schedules by the name of a preset, by file or as exported graphs, with their students, in a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from asdm.models import loading
from asdm.models.adapters import fit_control
from asdm.models.drawing import sampler_mark
from asdm.models.export import MARKER, RUNTIMES
from asdm.models.families import Family, load_family
from asdm.models.settings import Setup
from asdm.models.student import StudentUNet, build, read_plan
from asdm.plan.edits import PruningPlan
from asdm.plan.legality import ResolvedPlan
from asdm.records.build import ExportResult
from asdm.schedule import presets
from asdm.schedule.calls import calls_of, other_number
from asdm.schedule.graphs.unet import GraphUNet
from asdm.schedule.schedule import TEACHER, Schedule
from asdm.schedule.unet import ScheduledUNet, use
from asdm.unet import blocks
from asdm.unet.surgery import resolved_on
from asdm.utils import registry

SCHEDULE = "schedule.json"  # in a folder of exported graphs


def is_file(source: str) -> bool:
    """Whether a schedule as typed is a file or an exported folder, not a preset."""
    return not presets.is_preset(source)


def is_of(source: str, unet: nn.Module) -> bool:
    """Whether a schedule's file may be run on a UNet: it names that one's config, or none."""
    return Schedule.load(_file(source)).teacher_config_sha256 in (None, loading.unet_config_sha256(unet.config))


def _file(source: str) -> Path:
    return Path(source) / SCHEDULE if Path(source).is_dir() else Path(source)


def read_schedule(source: str, unet: nn.Module, family: str, calls: int | None, scheduler: Any = None) -> Schedule:
    """A schedule of `calls` UNet calls from a preset as typed (`deepcache:interval=3`), or from a file (None: any).

    `scheduler` is the sampler that makes these calls; a preset needs none.

    Raises ValueError for another source, another teacher, another number of calls, and what a preset refuses.
    """
    sha256 = loading.unet_config_sha256(unet.config)
    if presets.is_preset(source):
        assert calls is not None, "a preset has no number of its own"
        return presets.make(source, blocks.topology(unet), calls, family, sha256)
    if not _file(source).exists():
        raise ValueError(
            f"{source!r} is neither a schedule file, nor a folder of exported graphs, nor a preset; choose from "
            f"{', '.join(registry.names(presets.PACKAGE))}."
        )
    schedule = Schedule.load(_file(source))
    if schedule.teacher_config_sha256 not in (None, sha256):
        made_for = str(schedule.teacher_config_sha256)[:12]
        raise ValueError(
            f"{source} was made for another UNet ({schedule.family}, config {made_for}) "
            f"than {family} (config {sha256[:12]}); plan a schedule on a profile of {family}."
        )
    if calls not in (None, len(schedule.steps)):
        raise ValueError(other_number(source, len(schedule.steps), calls or 0, scheduler))
    return schedule


def students_of(schedule: Schedule, teacher: nn.Module, family: Family, setup: Setup) -> dict[str, nn.Module]:
    """The networks that a schedule names besides its teacher: folders, plans or presets of pruning."""
    return {name: student_of(source, teacher, family, setup) for name, source in schedule.networks.items()}


def student_of(source: str, teacher: nn.Module, family: Family, setup: Setup) -> nn.Module:
    """A student from its folder, or made of the teacher by a plan or a preset.

    A ControlNet's residuals for the teacher's skips meet those that the student has, where its plan is known.
    """
    plan: PruningPlan | ResolvedPlan | None = None
    if Path(source).is_dir():
        own = load_family(source)
        if own.unet.get("cross_attention_dim") != family.unet.get("cross_attention_dim"):
            raise ValueError(f"{source} is not a student of {family.name}: its cross_attention_dim differs.")
        student: Any = loading.load_unet(own, source, setup.device, setup.dtype)
        if (file := Path(source) / "plan.json").exists():
            plan = PruningPlan.load(file)
    else:
        plan = read_plan(source, teacher, family.name)
        student, _ = build(teacher, plan)
    if plan and not isinstance(student, StudentUNet):  # which does so by itself
        fit_control(student, blocks.skips(teacher), resolved_on(teacher, plan))
    return student


def put_into(
    pipe: Any,
    source: str,
    family: Family,
    setup: Setup,
    steps: int,
    students: Mapping[str, nn.Module] | None = None,
) -> tuple[ScheduledUNet, str | None]:
    """Read a schedule and put it into a pipeline; also a warning, where it was planned for something else."""
    teacher = pipe.unet.networks[TEACHER] if isinstance(pipe.unet, ScheduledUNet) else pipe.unet
    schedule = read_schedule(source, teacher, family.name, calls_of(pipe.scheduler, steps), pipe.scheduler)
    if students is None:
        students = students_of(schedule, teacher, family, setup)
    scheduled = scheduled_unet(source, {TEACHER: teacher, **students}, schedule)
    use(pipe, scheduled)
    return scheduled, warning(schedule, pipe, teacher)


def warning(schedule: Schedule, pipe: Any, teacher: nn.Module) -> str | None:
    """A sentence where a schedule was planned for another sampler or other weights, or None."""
    weights = loading.weights_sha256(teacher) if schedule.weights_sha256 else None
    return schedule.not_made_for(sampler_mark(pipe.scheduler), weights)


def scheduled_unet(source: str, networks: Mapping[str, nn.Module], schedule: Schedule) -> ScheduledUNet:
    """A schedule on its networks, or its exported graphs if `source` is their folder.

    Raises ValueError for graphs of other weights, and for a dtype but theirs.
    """
    if not Path(source).is_dir():
        return ScheduledUNet(networks, schedule)
    exported = ExportResult.load(Path(source) / MARKER)
    if not exported.graphs or exported.to not in RUNTIMES:
        raise ValueError(f"{source} holds no graphs of a schedule; `asdm export --schedule` writes them.")
    teacher: Any = networks[TEACHER]
    if str(teacher.dtype) != "torch.float32":
        dtype = str(teacher.dtype).removeprefix("torch.")
        raise ValueError(f"{source} holds graphs for a UNet in fp32, got {dtype}; use --dtype fp32.")
    if exported.source_sha256 != (sha256 := loading.weights_sha256(teacher)):
        raise ValueError(
            f"{source} was exported from other weights ({str(exported.source_sha256)[:12]}) than these "
            f"({sha256[:12]}); export it again."
        )
    runtime = RUNTIMES[exported.to]
    return GraphUNet(networks, schedule, runtime=runtime, folder=Path(source), files=exported.graphs)
