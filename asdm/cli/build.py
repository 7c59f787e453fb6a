"""`asdm build`: apply a plan to its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Without, from_settings, source_of
from asdm.models.settings import Setup
from asdm.plan.presets import PRESETS
from asdm.utils import console


@from_settings
def build(
    plan: Annotated[str, typer.Argument(help=f"A plan file, or a preset: {', '.join(PRESETS)}.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the student (a diffusers folder).")],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Family, diffusers folder or checkpoint; default: the plan's family, and for a preset what --weights "
            "are of, otherwise sd15."
        ),
    ] = None,
    stage1: Annotated[
        str | None,
        typer.Option(help="Folder of a stage-1 student whose compressed blocks are grafted onto the frozen teacher."),
    ] = None,
    units: Annotated[
        Path | None, typer.Option(help="Library of fitted or distilled units (asdm distill-units) to build with.")
    ] = None,
    setup: Annotated[Setup, Without("threads", "batch", "size")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply a plan to its teacher and save the student, which inherits the teacher's weights."""
    source = source_of(plan)
    from asdm.models.build import build_student, describe

    with console.progress("Building") as tell:
        result = build_student(source, teacher, output, stage1, setup, force, tell, units)
    print(result.to_json() if as_json else f"{describe(result, output)}\n", end="")
    if result.warning:
        console.say(f"Warning: {result.warning}")
