"""`asdm-prof schedule`: what every step of an image computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, save_and_print, target
from asdm.utils import console as terminal
from asdm.utils.runs import find_input
from asdm_prof.cli.inputs import default_folder, feasible, profile_at
from asdm_prof.cli.options import ProfileOption
from asdm_prof.records import StepsDamage


def schedule(
    budget: Annotated[
        str | None, typer.Option(help="Budget of a whole image: 0.5, 50%, 2.5s or x2; without it, the frontier.")
    ] = None,
    profile: ProfileOption = None,
    damage: Annotated[
        Path | None,
        typer.Option(help="Damage across steps (sensitivity --across-steps); default: a structural prior."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; default: the damage's, else the profile's.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Sampler, as asdm generate names it; refused if damage is of another.")
    ] = None,
    student: Annotated[
        list[str] | None, typer.Option(help="A student that may draw steps: a folder, plan or preset; may be repeated.")
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(help="A schedule file or preset whose latency and damage to tell here, instead of planning one."),
    ] = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The schedule of least damage within a budget of the whole image's latency, proved optimal; or the frontier."""
    from asdm_prof.planner.schedule import plan as planner, prices, sources
    from asdm_prof.renderers import console

    if budget and price:
        raise ValueError("--price evaluates an existing schedule and cannot be combined with --budget.")
    measured, _ = profile_at(profile)
    name = "priced-schedule.json" if price else "schedule.json" if budget else "schedule-frontier.json"
    path = target(output, default_folder(measured), name, force)
    damages = StepsDamage.load(find_input(damage)) if damage else None
    problem = sources.problem(measured, damages, steps, scheduler, student or ())
    if damages and (other := prices.unlike(measured, damages)):
        terminal.say(
            f"The damage was measured with {' and '.join(other)} as the profile, so what it costs to keep values is "
            "not known, and images may take longer than planned; measure both alike."
        )
    frontier = planner.make_frontier(problem)
    if frontier.gained is False:
        terminal.say(
            f"Nothing is gained across {problem.model.calls} steps: at every latency that was measured, drawing with "
            "fewer steps does as little damage."
        )
    if price:
        priced = planner.price_schedule(problem, sources.schedule_at(price, problem))
        save_and_print(
            priced, path, force, as_json, lambda: console.print_schedule(priced, measured, frontier)
        )  # fmt: skip
        return
    if budget is None:
        save_and_print(frontier, path, force, as_json, lambda: console.print_record(frontier, console.stdout_console()))
        return
    with feasible({"latency": budget}):
        result = planner.make_schedule(problem, budget)
    save_and_print(
        result, path, force, as_json, lambda: console.print_schedule(result, measured, frontier)
    )  # fmt: skip
    if sentence := planner.shadow_sentence(frontier, result):
        terminal.say(sentence)
