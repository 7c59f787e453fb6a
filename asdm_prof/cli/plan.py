"""`asdm-prof plan`: the best plan within a budget."""

from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, save_and_print, target
from asdm.utils import console as terminal
from asdm_prof.cli.inputs import budgets_of, damage_at, default_folder, feasible, profile_at, validation_at
from asdm_prof.cli.options import (
    Budget,
    Confidence,
    DamageFile,
    LoadsIn,
    Macs,
    MaxDamage,
    Memory,
    Params,
    ProfileOption,
    ValidationFile,
)


def plan(
    budget: Budget = None,
    profile: ProfileOption = None,
    confidence: Confidence = 0.95,
    validation: ValidationFile = None,
    damage: DamageFile = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    max_damage: MaxDamage = None,
    loads_in: LoadsIn = None,
    why: Annotated[
        bool, typer.Option("--why/--no-why", help="Say which budgets bind, and what other choices cost.")
    ] = True,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The legal plan of least damage within budgets of latency, MACs, parameters or memory, proved optimal."""
    from asdm_prof.planner import plan as planner
    from asdm_prof.planner.budgets import NO_BUDGET
    from asdm_prof.planner.explain import with_reasons
    from asdm_prof.planner.frontier import fastest_within
    from asdm_prof.planner.loads_in import parse_programs
    from asdm_prof.renderers import console

    budgets = budgets_of(budget, macs, params, memory)
    if not budgets and max_damage is None:
        raise ValueError(NO_BUDGET)
    measured, _ = profile_at(profile)
    path = target(output, default_folder(measured), "plan.json", force)
    validated, damages = validation_at(validation), damage_at(damage)
    programs = parse_programs(loads_in)
    most = None if max_damage is None else planner.parse_damage(max_damage, damages)
    with feasible(budgets, measured):
        if most is not None and not budgets:
            budgets = {"latency": fastest_within(measured, most, confidence, validated, damages, programs)}
        result = planner.make_plan(measured, budgets, confidence, validated, damages, programs)
        if most is not None and result.proof and result.proof.damage > most:
            raise planner.TooMuchDamage(result.proof.damage, most)
    if why:
        with terminal.progress("Planning") as tell:
            result = with_reasons(measured, result, confidence, validated, damages, tell)
    save_and_print(result, path, force, as_json, lambda: print("\n".join(console.plan_lines(result, measured))))
