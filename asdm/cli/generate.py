"""`asdm generate`: pictures from prompts."""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.cli.options import FAMILY, SCHEDULE, Force, Without, from_settings
from asdm.models.settings import GenerateSettings
from asdm.records.levers import Levers
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
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Run as fast as is known on this machine: levers of a file, or what is safe; CPU alone."
        ),
    ] = False,
    levers: Annotated[
        Path | None,
        typer.Option(help="File of measured levers for --fast; default: the newest levers.json of this machine."),
    ] = None,
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
    if levers and not fast:
        raise ValueError("--levers is what --fast chooses from; add --fast.")
    from asdm.models import pipeline

    chosen = _fastest(family, student, schedule, levers, settings) if fast else None
    student = chosen.student if chosen else student

    def adapt(pipe: Any, family: Any) -> None:
        from asdm.schedule import source
        from asdm.schedule.graphs import fast as fastest

        warning = None
        if chosen:
            scale = family.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
            warning = fastest.put_into(pipe, chosen, family, settings, settings.steps, scale, tell)
        elif schedule:
            _, warning = source.put_into(pipe, schedule, family, settings, settings.steps)
        if warning:
            console.say(f"Warning: {warning}")

    with console.progress("Generating", "steps") as tell:
        pictures = pipeline.generate(family, prompts, settings, student, tell, adapt)
    for file, picture in zip(files, pictures, strict=True):
        stream = BytesIO()
        picture.save(stream, format="PNG")
        io.write_whole(file, stream.getvalue(), force)
        console.say(f"Wrote {file}")


def _fastest(
    family: str | None, student: str | None, schedule: str | None, levers: Path | None, settings: GenerateSettings
) -> Levers:
    """Levers for `--fast`, with the student and schedule that were named; says what was chosen."""
    from asdm.models.sources import resolve
    from asdm.schedule.graphs import fast

    if settings.control:
        raise ValueError("--fast has no graphs that take a ControlNet's residuals; leave out --fast or --control.")
    resolved, _ = resolve(family, settings, needs="asdm generate", default="mini")
    chosen, why = fast.choose(levers, resolved, settings.steps, student)
    named = {name: value for name, value in (("student", student), ("schedule", schedule)) if value}
    chosen = chosen.model_copy(update=named)
    console.say(fast.describe(chosen, why))
    return chosen
