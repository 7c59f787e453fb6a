"""Everything about damage on the mini, in one command (about six minutes).

    python -m benchmarks.damage -o reports/mini

Profile (if the folder has none of these weights), sensitivity over 64 prompts × 8 timesteps with 40 joint plans,
frontier with the best and the most diverse plans at 0.75, our plan at 0.75, our plans against the baselines at every
budget from 0.95 to 0.50, and the figures. Writes profile.json, damage.json, frontier.json, plan.json, budgets.json and
figures/. An interrupted run resumes. `--family` takes any family with weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import this_command
from asdm.utils import console as terminal, io
from asdm_prof.cli.progress import watching
from asdm_prof.planner import explain, frontier, plan as planner
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.renderers import console, figures
from asdm_prof.sensitivity import study
from benchmarks import report
from benchmarks.budgets.compare import compare
from benchmarks.budgets.section import rows_of
from benchmarks.script import FamilyName, Threads, run

BUDGET = "0.75"


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything that is written.")],
    family: FamilyName = "mini",
    prompts: Annotated[int, typer.Option(help="Pictures with captions to measure on.")] = 64,
    timesteps: Annotated[int, typer.Option(help="Noise levels per picture.")] = 8,
    plans: Annotated[int, typer.Option(help="Random joint plans.")] = 40,
    candidates: Annotated[int, typer.Option(help="Best plans by prediction that are measured at each budget.")] = 10,
    threads: Threads = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the folder already has.")] = False,
) -> None:
    """Measure damage, plan by it, compare with the baselines and draw the figures."""
    command = this_command("python -m benchmarks.damage")
    settings = study.SensitivitySettings(threads=threads, prompts=prompts, timesteps=timesteps)
    io.make_folder(output)
    with watching("Profiling") as watch:
        timing = ProfileSettings(threads=threads)
        profile = study.load_or_profile(output / "profile.json", family, timing, fresh, watch, command)
    with terminal.progress("Measuring damage") as tell:
        sha256, path = profile.weights_sha256, output / "damage.json"
        damage = study.load_or_measure_damage(path, family, settings, plans, sha256, fresh, tell, command)
    console.print_record(damage, console.stdout_console())
    front = frontier.make_frontier(profile, damage, "latency", {"latency": BUDGET}, 10, 10)
    front.save(output / "frontier.json", force=True)
    plan = explain.with_reasons(profile, planner.make_plan(profile, BUDGET, damage=damage), damage=damage)
    plan.save(output / "plan.json", force=True)
    with terminal.progress("Comparing") as tell:
        compared = compare(profile, damage, settings, candidates, output, tell, command)
    compared.save(output / "budgets.json", force=True)
    terminal.emit(rows_of(compared), terminal.Format.table)
    figures.render(report.collect(output / "profile.json"), output, report.FIGURES)


if __name__ == "__main__":
    run(main)
