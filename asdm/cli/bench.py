"""`asdm bench`: students against their teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.cli.options import (
    SCHEDULE,
    TEACHER,
    Force,
    Json,
    Output,
    from_settings,
    save_and_print,
    target,
    this_command,
    warn_if_slow,
)
from asdm.evaluate.settings import BenchSettings
from asdm.records.bench import MEASURES, BenchResult, BenchSchedule, BenchStudent
from asdm.records.measurement import Estimate, mac_unit
from asdm.utils import console
from asdm.utils.runs import find_input, run_folder, short_name


@from_settings
def bench(
    *,
    student: Annotated[
        list[str] | None, typer.Option(help="A student's folder, a plan or a preset; may be repeated.")
    ] = None,
    schedule: Annotated[
        list[str] | None, typer.Option(help=f"{SCHEDULE}; whole images by teacher and students; may be repeated.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help=TEACHER)] = None,
    settings: BenchSettings,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure students against their teacher, in pairs: UNet, whole image, MACs, parameters, memory."""
    from asdm.evaluate import benchmark, latency

    warn_if_slow(settings.device, settings.dtype, settings.backend)
    default = run_folder(short_name(teacher or settings.weights or "sd15"), settings.backend, settings.dtype)
    path = target(output, default, "bench.json", force)
    sources, planned = ([str(find_input(Path(name))) for name in names or ()] for names in (student, schedule))
    with console.progress("Comparing") as tell:
        result = benchmark.bench(teacher, sources, settings, tell, this_command("asdm"), planned)
    save_and_print(result, path, force, as_json, lambda: print_tables(result))
    for one in compared(result):
        if one.warning:
            console.say(f"Warning: {one.warning}")
    for name, metric in compared(result)[0].quality.items():
        if metric.note:
            console.say(f"Note: {MEASURES[name].title}: {metric.note}.")
    for what, error in result.out_of_memory.items():
        console.say(f"Warning: there was too little memory for the {what}, which is left out: {error}")
    if warning := latency.noise_warning(result, settings):
        console.say(f"Warning: {warning}")


def compared(result: BenchResult) -> list[BenchStudent | BenchSchedule]:
    """Students and schedules, in their order."""
    return [*result.students, *result.schedules]


def print_tables(result: BenchResult) -> None:
    """Print a row per student, a row per quality metric if there are any, and the teacher in a line."""
    macs, unit = mac_unit(result.teacher.macs)
    if result.students:
        guided = any(student.predicted_guided for student in result.students)
        console.emit([_row(student, macs, unit, guided) for student in result.students], console.Format.table)
    if result.schedules:
        console.emit([_schedule_row(one) for one in result.schedules], console.Format.table)
    if quality := [row for one in compared(result) for row in _quality_rows(one)]:
        console.emit(quality, console.Format.table)
    teacher, name = result.teacher, console.plain(result.teacher.name)
    print(
        f"Teacher {name}: {teacher.params / 1e6:.1f} M parameters, {teacher.macs / macs:.1f} {unit}, "
        f"{teacher.unet_latency_s.median:.3g} s per UNet call; × is student / teacher with its 95 % interval."
    )


def _row(student: BenchStudent, macs: float, unit: str, guided: bool) -> dict[str, Any]:
    """`guided`: whether predictions are of the guided step, whose ratio then stands beside them."""
    return {
        "student": student.name,
        "params M": f"{student.params / 1e6:.1f}",
        unit: f"{student.macs / macs:.1f}",
        "UNet ×": _ratio(student.unet_latency_ratio),
        **({"guided step ×": _ratio(student.guided_latency_ratio)} if guided else {}),
        "predicted ×": "" if student.predicted_ratio is None else f"{student.predicted_ratio:.3f}",
        "image ×": _ratio(student.image_latency_ratio),
    }


def _ratio(ratio: Estimate | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _schedule_row(one: BenchSchedule) -> dict[str, Any]:
    return {
        "schedule": one.name,
        "MACs ×": f"{one.macs_ratio:.3f}",
        "predicted ×": "" if one.predicted_ratio is None else f"{one.predicted_ratio:.3f}",
        "image ×": _ratio(one.image_latency_ratio),
    }


def _quality_rows(student: BenchStudent | BenchSchedule) -> list[dict[str, Any]]:
    """A row per metric; the noise floor is the teacher against itself with other seeds."""
    return [
        {
            "student": student.name,
            "quality": name,
            "value": f"{metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]",
            "teacher": "" if metric.teacher is None else f"{metric.teacher:.4g}",
            "noise floor": "" if metric.noise_floor is None else f"{metric.noise_floor:.4g}",
        }
        for name, metric in student.quality.items()
    ]
