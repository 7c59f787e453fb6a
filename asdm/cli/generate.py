"""`asdm generate`: one picture from a prompt."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import FAMILY, Force, Without, from_settings
from asdm.models.settings import GenerateSettings
from asdm.utils import console, io


@from_settings
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")],
    family: Annotated[str, typer.Option(help=FAMILY)] = "mini",
    student: Annotated[
        str | None, typer.Option(help="Folder of a student whose UNet draws instead of the family's.")
    ] = None,
    settings: Annotated[GenerateSettings, Without("threads", "batch")],
    force: Force = False,
) -> None:
    """Draw one picture from a prompt, with a family's UNet or a student's."""
    if output.suffix != ".png":
        raise ValueError(f"the output must be a .png file, got {output}.")
    io.check_writable(output, force)
    from asdm.models import pipeline
    from asdm.models.families import load_family

    with console.progress("Generating", "steps") as tell:
        picture = pipeline.generate(load_family(family), prompt, settings, student, tell)
    stream = BytesIO()
    picture.save(stream, format="PNG")
    io.write_whole(output, stream.getvalue(), force)
    console.say(f"Wrote {output}")
