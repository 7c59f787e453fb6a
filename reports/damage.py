"""`python reports/damage.py -o reports/mini`: everything about damage on the mini, in one go (about 20 minutes).

Profile (where the folder has none of these weights), sensitivity over 64 prompts × 8 timesteps with 40 joint plans,
frontier with the best and unlike plans at 0.75, our plan at 0.75, our plans against the baselines at every budget from
0.95 to 0.50, and the figures. Writes profile.json, damage.json, frontier.json, plan.json, budgets.json and figures/.
An interrupted run goes on where it was. Also for other families with weights of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asdm import files, models, terminal
from asdm.families import load_family
from asdm.options import this_command
from asdm_prof import budgets, damage, frontier, gather, planner, why
from asdm_prof.live import watching
from asdm_prof.profiler import Settings as ProfileSettings
from asdm_prof.profiler import profile as measure_profile
from asdm_prof.records import Damage, Profile
from asdm_prof.renderers import console, figures

SHOWN = "0.75"


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder that everything is written into.")],
    family: Annotated[str, typer.Option(help="A family with weights, or a diffusers folder.")] = "mini",
    prompts: Annotated[int, typer.Option(help="Pictures with captions to measure on.")] = 64,
    timesteps: Annotated[int, typer.Option(help="Noise levels of each.")] = 8,
    plans: Annotated[int, typer.Option(help="Random joint plans.")] = 40,
    candidates: Annotated[int, typer.Option(help="Best plans by prediction that are measured at each budget.")] = 10,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: what torch takes.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the folder has already.")] = False,
) -> None:
    """Measure, plan, compare and draw."""
    command = this_command("python")
    settings = damage.Settings(threads=threads, prompts=prompts, timesteps=timesteps)
    files.make_folder(output)
    profile = _profile(family, output / "profile.json", threads, fresh, command)
    found = _damage(family, settings, plans, profile, output / "damage.json", fresh, command)
    console.print_damage(found, console.stdout_console())
    front = frontier.make_frontier(profile, found, "latency", {"latency": SHOWN}, 10, 10)
    front.save(output / "frontier.json", force=True)
    plan = why.explained(profile, planner.make_plan(profile, SHOWN, damage=found), damage=found)
    plan.save(output / "plan.json", force=True)
    with terminal.progress("Comparing") as tell:
        compared = budgets.compare(
            profile, found, settings, candidates=candidates, folder=output, tell=tell, command=command
        )
    compared.save(output / "budgets.json", force=True)
    terminal.emit(console.budget_rows(compared), terminal.Format.table)
    figures.render(gather.report(profile, output / "profile.json"), output)


def _profile(family: str, path: Path, threads: int | None, fresh: bool, command: str) -> Any:
    loaded = load_family(family)
    teacher = models.load_unet(loaded, models.default_weights(loaded))
    if path.exists() and not fresh:
        found = Profile.load(path)
        if found.weights_sha256 == models.weights_sha256(teacher):
            return found
    with watching("Profiling") as watch:
        made = measure_profile(family, ProfileSettings(threads=threads), watch, command=command)
    made.save(path, force=True)
    return made


def _damage(
    family: str, settings: damage.Settings, plans: int, profile: Any, path: Path, fresh: bool, command: str
) -> Any:
    if path.exists() and not fresh:
        found = Damage.load(path)
        asked = (settings.prompts, settings.timesteps, profile.weights_sha256)
        if (found.prompts, len(found.timesteps), found.weights_sha256) == asked:
            return found
    run_file = path.with_name(f"{path.name}.run")
    with terminal.progress("Measuring damage") as tell:
        made = damage.sensitivity_of(family, settings, plans, run_file=run_file, tell=tell, command=command)
    made.save(path, force=True)
    run_file.unlink(missing_ok=True)
    return made


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    terminal.run(app)
