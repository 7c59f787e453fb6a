"""`asdm generate`: pictures from prompts."""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.cli.options import FAMILY, SCHEDULE, Force, Without, from_settings
from asdm.models.settings import GenerateSettings
from asdm.utils import console, io


@from_settings
def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; one picture for each.")],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="PNG file to write; numbered (-1, -2, …) for several prompts.")
    ],
    family: Annotated[
        str | None, typer.Option(help=f"{FAMILY[:-1]}; default: what --weights are of, otherwise mini.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Folder of a student whose UNet draws instead of the family's.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help=f"{SCHEDULE}; what each step computes.")] = None,
    settings: Annotated[GenerateSettings, Without("threads", "batch")],
    force: Force = False,
) -> None:
    """Draw a picture for each prompt, with a family's UNet or a student's."""
    if output.suffix != ".png":
        raise ValueError(f"the output must be a .png file, got {output}.")
    several = len(prompts) > 1
    files = [output.with_stem(f"{output.stem}-{i + 1}") if several else output for i in range(len(prompts))]
    for file in files:
        io.check_writable(file, force)
    from asdm.models import pipeline

    def by_schedule(pipe: Any, family: Any) -> None:
        from asdm.schedule import source

        _, warning = source.put_into(pipe, str(schedule), family, settings, settings.steps)
        if warning:
            console.say(f"Warning: {warning}")

    with console.progress("Generating", "steps") as tell:
        adapt = by_schedule if schedule else None
        pictures = pipeline.generate(family, prompts, settings, student, tell, adapt)
    for file, picture in zip(files, pictures, strict=True):
        stream = BytesIO()
        picture.save(stream, format="PNG")
        io.write_whole(file, stream.getvalue(), force)
        console.say(f"Wrote {file}")
