"""`asdm distill`: train a plan's student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import FAMILY, Json, from_settings, source_of, this_command, warn_if_slow
from asdm.distill.settings import DistillSettings
from asdm.utils import console


@from_settings
def distill(
    plan: Annotated[str, typer.Argument(help="A plan file or a preset: what the student will be in the end.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The run's folder, which becomes the student's.")],
    teacher: Annotated[
        str | None,
        typer.Option(help=f"{FAMILY[:-1]}; default: the plan's, and for a preset what --weights are of or sd15."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="progressive_incubation, without_incubation, bk_sdm, or FILE.py:FUNCTION.")
    ] = "progressive_incubation",
    stage: Annotated[str | None, typer.Option(help="Run this stage alone, such as compressed or combined.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="How grafted blocks learn: end_to_end, or blockwise (cheaper).")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="TERM=NUMBER or STAGE.TERM=NUMBER: weight of a loss term, 0 for none; may be repeated."),
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option(
            "--normalise/--raw",
            help="Divide feature losses by the size of the teacher's features, or do not; default: the recipe's.",
        ),
    ] = None,
    settings: DistillSettings,
    until: Annotated[
        int | None,
        typer.Option(
            help="Pause after this step of all stages; the student so far is in paused/, and the run can be resumed."
        ),
    ] = None,
    amend: Annotated[
        bool, typer.Option("--amend", help="Resume a run with another learning rate, loss weights or the like.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be trained, the memory and the steps it takes, and stop."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete another run that is in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Train a plan's student from its teacher; repeat the command to resume an interrupted run."""
    from asdm.cli import progress
    from asdm.distill import recipes, run
    from asdm.distill.context import is_main_process
    from asdm.distill.dry_run import preview

    source = source_of(plan)
    warn_if_slow(settings.device, settings.dtype)
    chosen = recipes.adjust(recipes.load(recipe), mode, recipes.parse_weights(weight or []), normalise)
    if dry_run:
        stages = preview(source, teacher, settings, chosen, stage)
        print(progress.preview_json(stages) if as_json else progress.preview_text(stages, settings))
        return
    try:
        with progress.watching("Distilling") as watch:
            result = run.distill(
                source, teacher, output, settings, chosen, stage, force, amend, watch, this_command("asdm"), until
            )
    except KeyboardInterrupt:
        if (output / "run.json").exists():
            console.say(f"The run in {output} is saved up to here; repeat the command to resume it.")
        raise
    if is_main_process():
        print(result.to_json() if as_json else f"{progress.result_text(result, output)}\n", end="")
