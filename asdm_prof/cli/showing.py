"""Commands that show what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json
from asdm.utils import console, io
from asdm_prof.cli.shared import ProfileArgument, profile_at


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
        Path | None, typer.Option("-o", "--output", help="Folder; default: one of its own under reports/.")
    ] = None,
    force: Force = False,
) -> None:
    """One offline HTML page, figures and a table from the files that are there."""
    from asdm.utils import registry
    from asdm_prof.renderers import _collect

    renderers = [registry.load("asdm_prof.renderers", name.strip()) for name in formats.split(",")]
    found, path = profile_at(profile)
    folder = output or io.run_folder(io.short_name(found.family), found.backend, found.dtype)
    with console.progress("Reporting") as tell:
        tell("gathering", 0, None)
        collected = _collect.report(found, path, plan, bench, damage, frontier, log, beside)
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


def env(as_json: Json = False) -> None:
    """What a bug report needs: versions, machine, devices and extras; no names of users, files or hosts."""
    from asdm_prof.profiler import environment

    found = environment.facts()
    print(json.dumps(found, indent=1) if as_json else "\n".join(environment.lines(found)))
