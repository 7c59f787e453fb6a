"""`asdm-prof frontier`: every plan that no other beats."""

from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, save_and_print, target
from asdm_prof.cli.inputs import budgets_of, damage_at, default_folder, feasible, profile_at, validation_at
from asdm_prof.cli.options import (
    Budget,
    Confidence,
    DamageFile,
    LoadsIn,
    Macs,
    Memory,
    Params,
    ProfileOption,
    ValidationFile,
)


def frontier(
    profile: ProfileOption = None,
    damage: DamageFile = None,
    by: Annotated[str, typer.Option(help="What is traded for damage: latency, macs or params.")] = "latency",
    best: Annotated[int, typer.Option(help="Also list this many best plans within the budgets.")] = 0,
    diverse: Annotated[
        int, typer.Option(help="Also list this many plans within the budgets, each unlike those before it.")
    ] = 0,
    apart: Annotated[int, typer.Option(help="In how many choices any two diverse plans differ, at least.")] = 3,
    budget: Budget = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    loads_in: LoadsIn = None,
    confidence: Confidence = 0.95,
    validation: ValidationFile = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The exact frontier of latency and damage, and the best or most diverse plans within budgets."""
    measured, _ = profile_at(profile)
    path = target(output, default_folder(measured), "frontier.json", force)
    from asdm_prof.planner.frontier import make_frontier
    from asdm_prof.planner.loads_in import parse_programs
    from asdm_prof.renderers import console

    budgets = budgets_of(budget, macs, params, memory)
    damages, validated = damage_at(damage), validation_at(validation)
    programs = parse_programs(loads_in)
    with feasible(budgets, measured):
        result = make_frontier(measured, damages, by, budgets, best, diverse, apart, confidence, validated, programs)
    save_and_print(result, path, force, as_json, lambda: console.print_record(result, console.stdout_console()))
