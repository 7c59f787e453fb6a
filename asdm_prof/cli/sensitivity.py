"""`asdm-prof sensitivity`: the damage of every edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, Without, from_settings, save_and_print, target, this_command
from asdm.utils import console as terminal
from asdm.utils.runs import find_input, run_folder, short_name
from asdm_prof.cli.inputs import resumable
from asdm_prof.records import Damage, Profile, StepsDamage
from asdm_prof.sensitivity.settings import AcrossSteps, SensitivitySettings


@from_settings
def sensitivity(
    family: Annotated[str, typer.Argument(help="mini, sd15, sd21, sd21_base, a diffusers folder, or a checkpoint.")],
    *,
    plans: Annotated[int, typer.Option(help="Random joint plans that test whether damages add up; 0: none.")] = 40,
    clip: Annotated[
        int, typer.Option(help="Pictures to draw with each edit for its change in CLIP score (SnapFusion); 0: none.")
    ] = 0,
    replacement: Annotated[
        list[str] | None,
        typer.Option(help="Replacement to measure, or all; may be repeated. Default: gri_attention and kv_downsample."),
    ] = None,
    race: Annotated[
        bool, typer.Option("--race", help="Drop options that others of their unit beat on 16 pictures at 4 timesteps.")
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(help="Profile whose times the race goes by, and joint plans; default: MACs.")
    ] = None,
    across_steps: Annotated[
        bool, typer.Option("--across-steps", help="Measure what inheriting from earlier steps does, for a schedule.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many forwards it takes, and with --profile how long, and stop.")
    ] = False,
    across: AcrossSteps,
    settings: Annotated[SensitivitySettings, Without("batch")],
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure how much each edit changes the output on real weights and data, and whether damages add up."""
    timed = Profile.load(find_input(profile)) if profile else None
    if dry_run:
        if across_steps or clip:
            raise ValueError(
                "--dry-run counts the forwards of single edits and joint plans; leave out --across-steps and --clip."
            )
        from asdm_prof.sensitivity import dry_run as counting

        with terminal.progress("Counting") as tell:
            forecast = counting.forecast(family, settings, plans, replacement, race, timed, tell)
        print("\n".join(counting.lines(forecast)))
        return
    default = run_folder(short_name(family), "damage", settings.dtype)
    path = target(output, default, "steps-damage.json" if across_steps else "damage.json", force)
    from asdm_prof.renderers import console

    command = this_command("asdm-prof")
    result: Damage | StepsDamage
    with resumable(path) as run_file, terminal.progress("Measuring damage") as tell:
        if across_steps:
            from asdm_prof.sensitivity.across_steps import measure_across_steps

            result = measure_across_steps(family, settings, across, plans, run_file, tell, command)
        else:
            from asdm_prof.sensitivity.study import measure_sensitivity

            asked = (settings, plans, clip, replacement)
            result = measure_sensitivity(family, *asked, run_file, tell, command, race, timed)
    if result.weights == "random":
        terminal.say("Warning: the weights are random; their damages say nothing about a trained model.")
    save_and_print(result, path, force, as_json, lambda: console.print_record(result, console.stdout_console()))
    run_file.unlink(missing_ok=True)
    run_file.with_name(f"{run_file.name}.race").unlink(missing_ok=True)
