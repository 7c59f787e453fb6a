"""`asdm distill-units`: replaced units that each learned alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import TEACHER, Json, from_settings, source_of, this_command
from asdm.distill.settings import UnitSettings
from asdm.utils import console


@from_settings
def distill_units(
    teacher: Annotated[str | None, typer.Argument(help=TEACHER)] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the library; what it has is kept.")],
    plan: Annotated[
        list[str] | None, typer.Option(help="Plan whose replaced units are made; may be repeated. Default: --options.")
    ] = None,
    settings: UnitSettings,
    as_json: Json = False,
) -> None:
    """Fit replaced units on calibration data, and with --steps train each on what its original took and gave."""
    from asdm.distill.units import describe, distill_units as make
    from asdm.plan.edits import PruningPlan

    plans = [PruningPlan.load(source_of(name)) for name in plan or ()]
    with console.progress("Distilling units") as tell:
        record = make(teacher, output, settings, plans, tell, this_command("asdm"))
    print(record.to_json() if as_json else f"{describe(record, output)}\n", end="")
