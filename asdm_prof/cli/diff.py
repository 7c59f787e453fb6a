"""`asdm-prof diff`: what changed between two profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Json
from asdm.utils import console as terminal
from asdm.utils.console import Format
from asdm_prof.cli.inputs import flattened, profile_at
from asdm_prof.cli.options import FormatOption


def diff(
    a: Annotated[Path, typer.Argument(help="A profile.json or its folder: before.")],
    b: Annotated[Path, typer.Argument(help="A profile.json or its folder: after.")],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 if this holds, such as 'unit:p50>5%' or 'whole:p95>10%'; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare even if the environments differ.")] = False,
    form: FormatOption = Format.table,
    as_json: Json = False,
) -> None:
    """What changed from one profile to another, unit by unit, with intervals; for continuous integration."""
    from asdm_prof.analysis import diff as comparing
    from asdm_prof.renderers import console

    conditions = [comparing.parse_condition(text) for text in fail_on or []]
    (before, _), (after, _) = profile_at(a), profile_at(b)
    difference = comparing.diff(before, after)
    failed = comparing.failures(difference, conditions)
    if difference.unlike:
        reasons = "; ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in difference.unlike.items())
        if not force:
            terminal.say(f"Error: {a} and {b} are not comparable: {reasons}. Add --force to compare them anyway.")
            raise typer.Exit(terminal.INCOMPARABLE)
        terminal.say(f"Warning: the environments differ: {reasons}.")
    if as_json or form is Format.json:
        print(json.dumps(comparing.as_json(before, after, difference, failed), indent=1, allow_nan=False))
    elif form is Format.table:
        screen = console.stdout_console()
        screen.print(console.diff_table(difference, screen.width))
    else:
        parts = (difference.whole, *difference.parts)
        terminal.emit([flattened(part.model_dump(mode="json")) for part in parts], form)
    for condition, part in failed:
        terminal.say(f"Failed {condition.text}: {part.fqn} {console.change_text(getattr(part, condition.metric))}")
    if failed:
        raise typer.Exit(terminal.FAILED)
