"""`asdm-prof compare`: does a plan hold elsewhere?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, save_and_print, target, this_command
from asdm.plan.edits import PruningPlan
from asdm.utils.runs import find_input, run_folder, short_name
from asdm_prof.cli.inputs import feasible, profile_at


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
    from asdm_prof.analysis import transfer
    from asdm_prof.renderers import console

    measured = [(profile, str(path)) for profile, path in map(profile_at, profiles)]
    plans = [PruningPlan.load(find_input(path)) for path in plan or []]
    family = short_name(measured[0][0].family)
    path = target(output, run_folder(family, "compare"), "compare.json", force)
    with feasible({"latency": budget or ""}, margin_options=False):
        result = transfer.compare(measured, plans, budget, this_command("asdm-prof"))
    save_and_print(result, path, force, as_json, lambda: console.print_record(result, console.stdout_console()))
