"""`asdm-prof schedule`: what every step of an image computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, save_and_print, target
from asdm.models.settings import SCHEDULERS
from asdm.schedule.schedule import Schedule
from asdm.utils import console as terminal, io
from asdm_prof.cli.inputs import default_folder, feasible, profile_at
from asdm_prof.cli.options import ProfileOption
from asdm_prof.records import Profile, StepsDamage


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
    from asdm_prof.planner.schedule import plan as planner
    from asdm_prof.renderers import console

    if scheduler is not None and scheduler not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {scheduler!r}; choose from {', '.join(SCHEDULERS)}.")
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}.")
    if budget and price:
        raise ValueError("--price tells of a schedule that is there and --budget plans one; leave out one of them.")
    measured, _ = profile_at(profile)
    name = "priced-schedule.json" if price else "schedule.json" if budget else "schedule-frontier.json"
    path = target(output, default_folder(measured), name, force)
    damages = StepsDamage.load(io.find_input(damage)) if damage else None
    students = {Path(source).stem or source: source for source in student or ()}
    ratios = _ratios(measured, students)
    problem = planner.prepare(measured, damages, steps, SCHEDULERS.get(scheduler or ""), students, ratios)
    frontier = planner.make_frontier(problem)
    if frontier.gained is False:
        terminal.say(
            f"Nothing is gained across {problem.model.calls} steps: at every latency that was measured, drawing with "
            "fewer steps does as little damage."
        )
    if price:
        priced = planner.price_schedule(problem, _schedule_at(price, measured, problem.model.calls))
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


def _schedule_at(source: str, profile: Profile, calls: int) -> Schedule:
    """A schedule's file, or a preset on the profile's UNet."""
    from asdm.schedule import presets

    if presets.is_preset(source):
        return presets.make(source, profile.topology, calls, profile.family, profile.config_sha256)
    return Schedule.load(io.find_input(Path(source)))


def _ratios(profile: Profile, students: dict[str, str]) -> dict[str, float]:
    """Predicted time of each student, as a share of the teacher's."""
    if not students:
        return {}
    from asdm.models import loading
    from asdm.models.families import load_family
    from asdm.models.student import read_plan
    from asdm_prof.planner import plan as planner

    teacher = loading.meta_unet(load_family(profile.family))
    ratios = {}
    for name, source in students.items():
        file = Path(source) / "plan.json" if Path(source).is_dir() else Path(source)
        if Path(source).is_dir() and not file.exists():
            raise ValueError(f"{source} has no plan.json, so its time is not known; name a plan or a preset instead.")
        plan = read_plan(str(file), teacher, profile.family)
        ratios[name] = planner.price(profile, plan).ratio
    return ratios
