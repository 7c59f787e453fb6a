"""`asdm-prof validate`: predictions against measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, from_settings, save_and_print, target, this_command
from asdm.models.settings import Checkpoint
from asdm.utils import console as terminal, sizes
from asdm.utils.runs import run_folder, short_name
from asdm_prof.cli.inputs import profile_of, resumable
from asdm_prof.cli.options import FamilyArgument
from asdm_prof.planner.settings import ValidateSettings
from asdm_prof.records import ScheduleValidation, Validation


@from_settings
def validate(
    family: FamilyArgument,
    *,
    settings: ValidateSettings,
    profile: Annotated[
        Path | None, typer.Option(help="A profile.json; default: the family's newest under reports/, else a new one.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Use the newest profile of this backend.")] = None,
    device: Annotated[str | None, typer.Option(help="Use the newest profile of this device.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Use the newest profile of this dtype.")] = None,
    threads: Annotated[int | None, typer.Option(help="Use the newest profile of this many threads.")] = None,
    batch: Annotated[int | None, typer.Option(help="Use the newest profile of this batch.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Use the newest profile of this size in pixels, 512 or WIDTHxHEIGHT.")
    ] = None,
    schedules: Annotated[
        int, typer.Option(help="Run this many random schedules across steps instead of building plans, 3 or more.")
    ] = 0,
    calls: Annotated[int, typer.Option(help="UNet calls of each schedule (with --schedules).")] = 6,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Build random legal plans and measure them in pairs with their teacher: how far predictions can be trusted."""
    if schedules and (schedules < 3 or calls < 2):
        raise ValueError(f"schedules must be 0 or at least 3, of at least 2 calls, got {schedules} of {calls}.")
    default = run_folder(short_name(family), backend or "eager", dtype or "fp32")
    path = target(output, default, "validate-schedules.json" if schedules else "validate.json", force)
    from asdm_prof.planner import validate as validation
    from asdm_prof.renderers import console

    wanted = {
        "backend": backend, "device": device, "dtype": dtype, "threads": threads, "batch": batch,
        "size": sizes.parse(size) if size else None,
    }  # fmt: skip
    checkpoint = Checkpoint(weights=settings.weights, config=settings.config)
    measured = profile_of(family, profile, checkpoint, wanted)
    command = this_command("asdm-prof")
    result: ScheduleValidation | Validation
    with resumable(path) as run_file, terminal.progress("Validating") as tell:
        if schedules:
            from asdm.models.families import load_family
            from asdm_prof.planner.schedule.validate import ScheduleValidateSettings, validate_schedules

            asked = ScheduleValidateSettings(schedules, calls, seed=settings.seed, weights=settings.weights)
            of = load_family(family, settings.config)
            result = validate_schedules(of, measured, asked, run_file, tell, command)
        else:
            result = validation.validate(family, measured, settings, run_file, tell, command)
    save_and_print(result, path, force, as_json, lambda: console.print_record(result, console.stdout_console()))
    run_file.unlink(missing_ok=True)
