"""`asdm-prof report`: pages, figures and tables from the files that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force
from asdm.utils import console, io, registry
from asdm_prof.cli.inputs import default_folder, profile_at
from asdm_prof.cli.options import ProfileArgument


def report(
    profile: ProfileArgument = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json; default: the newest one made from the profile.")
    ] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(help="A bench.json, may be repeated; default: those beside the profile or of the plan's student."),
    ] = None,
    damage: Annotated[Path | None, typer.Option(help="A damage.json; default: the newest beside the profile.")] = None,
    frontier: Annotated[
        Path | None, typer.Option(help="A frontier.json; default: the newest beside the profile.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="The log.jsonl of a student's distillation.")] = None,
    beside: Annotated[
        Path | None, typer.Option(help="The profile.json of another model of the same blocks, such as sd15's for mini.")
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Comma-separated renderers: html, figures, csv, console, parquet, chrome_trace, speedscope.",
        ),
    ] = "html,figures,csv",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; default: a new one under reports/.")
    ] = None,
    force: Force = False,
) -> None:
    """Render one offline HTML page, figures and a table from the files that are there."""
    from asdm_prof.renderers import _collect

    renderers = [registry.load("asdm_prof.renderers", name.strip()) for name in formats.split(",")]
    measured, path = profile_at(profile)
    folder = output or default_folder(measured)
    with console.progress("Reporting") as tell:
        tell("collecting files", 0, None)
        collected = _collect.report(measured, path, plan, bench, damage, frontier, log, beside)
        for name, source in collected.sources.items():
            console.say(f"{name}: {source}")
        for renderer in renderers:
            if renderer.OUTPUT:
                io.check_writable(folder / renderer.OUTPUT, force)
        for renderer in renderers:
            tell(renderer.__name__.rpartition(".")[2], 0, None)
            written = renderer.render(collected, folder)
            if renderer.OUTPUT:
                count = f" ({len(written)} files)" if len(written) > 1 else ""
                console.say(f"Wrote {folder / renderer.OUTPUT}{count}")
