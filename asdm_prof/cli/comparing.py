"""Commands that order and compare what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json, target, this_command
from asdm.utils import console as terminal
from asdm.utils import io
from asdm.utils.console import Format
from asdm_prof.cli.shared import FormatOption, Output, ProfileArgument, feasible, flattened, profile_at


def rank(profile: ProfileArgument = None, form: FormatOption = Format.table, as_json: Json = False) -> None:
    """Units by redundancy: much latency, few parameters; ties are grouped."""
    found, _ = profile_at(profile)
    from asdm_prof.analysis.rank import rank as ranking
    from asdm_prof.renderers import console

    ranked = ranking(found)
    rows = [row.model_dump(mode="json") for row in ranked]
    if as_json or form is Format.json:
        print(json.dumps({"schema": "asdm.rank/1", "family": found.family, "units": rows}, indent=1))
    elif form is Format.table:
        screen = console.stdout_console()
        screen.print(console.rank_table(found, screen.width))
    else:
        terminal.emit([flattened(row) for row in rows], form)


def compare(
    profiles: Annotated[list[Path], typer.Argument(help="Two or more profile.json, or their folders.")],
    plan: Annotated[list[Path] | None, typer.Option(help="A plan.json to price by each; may be repeated.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Plan for each profile at this budget, and price each plan by all of them.")
    ] = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Does a plan made for one runtime, dtype, thread count, size or batch hold in another?"""
    from asdm.plan.edits import PruningPlan
    from asdm_prof.analysis import transfer
    from asdm_prof.renderers import console

    found = [(profile, str(path)) for profile, path in map(profile_at, profiles)]
    plans = [PruningPlan.load(io.find_input(path)) for path in plan or []]
    first = found[0][0]
    path = target(output, io.run_folder(io.short_name(first.family), "compare"), "compare.json")
    io.check_writable(path, force)
    with feasible({"latency": budget or ""}):
        result = transfer.compare(found, plans, budget, this_command("asdm-prof"))
    result.save(path, force)
    if as_json:
        print(result.to_json(), end="")
    else:
        console.print_comparison(result, console.stdout_console())
    terminal.say(f"Wrote {path}")


def diff(
    a: Annotated[Path, typer.Argument(help="A profile.json or its folder: before.")],
    b: Annotated[Path, typer.Argument(help="A profile.json or its folder: after.")],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 where it holds, such as 'unit:p50>5%' or 'whole:p95>10%'; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare unlike environments too.")] = False,
    form: FormatOption = Format.table,
    as_json: Json = False,
) -> None:
    """What changed from one profile to another, unit by unit, with intervals; for continuous integration."""
    from asdm_prof.analysis import diff as comparing
    from asdm_prof.renderers import console

    conditions = [comparing.parse_condition(text) for text in fail_on or []]
    (before, _), (after, _) = profile_at(a), profile_at(b)
    found = comparing.diff(before, after)
    failed = comparing.failures(found, conditions)
    if found.unlike:
        said = "; ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in found.unlike.items())
        if not force:
            terminal.say(f"Error: {a} and {b} do not compare: {said}. Add --force to compare them nevertheless.")
            raise typer.Exit(terminal.INCOMPARABLE)
        terminal.say(f"Warning: unlike environments: {said}.")
    if as_json or form is Format.json:
        print(json.dumps(comparing.as_json(before, after, found, failed), indent=1))
    elif form is Format.table:
        screen = console.stdout_console()
        screen.print(console.diff_table(found, screen.width))
    else:
        terminal.emit([flattened(part.model_dump(mode="json")) for part in (found.whole, *found.parts)], form)
    for condition, part in failed:
        terminal.say(f"Failed {condition.text}: {part.fqn} {console.change_text(getattr(part, condition.metric))}")
    if failed:
        raise typer.Exit(terminal.FAILED)
