"""`asdm slim`: from a checkpoint and pictures to a smaller model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.cli.options import Json, from_settings
from asdm.cli.slim.settings import SlimSettings
from asdm.utils import console


@from_settings
def slim(
    checkpoint: Annotated[str, typer.Argument(help="Family, diffusers folder or checkpoint.")],
    *,
    settings: SlimSettings,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for every step's file and the student.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the steps with their time, memory and disk, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Profile, measure damage, plan, train, judge and report in one go; repeat the command to resume after a stop."""
    from asdm.cli.slim import run
    from asdm.cli.slim.prepare import prepare

    with console.progress("Checking") as tell:
        tell("model and pictures", 0, None)
        prepared = prepare(checkpoint, settings, console.say)
    if dry_run:
        rows, fits, commands = _estimate(prepared, output)
        if as_json:
            print(json.dumps({"schema": "asdm.slim-preview/1", "steps": rows, "cards": fits, "commands": commands},
                             indent=1, allow_nan=False))  # fmt: skip
        else:
            _print_estimate(rows, fits, commands)
        return
    try:
        result = run.slim(prepared, output, console.say)
    except run.Failed as error:
        console.say(f"Stopped: {error}; what was done is in {output}, and the same command resumes from there.")
        raise typer.Exit(error.code if 0 < error.code < 128 else console.USAGE) from None
    except run.WorseThanAsked as error:
        console.say(f"Stopped: {error}")
        raise typer.Exit(console.FAILED) from None
    except KeyboardInterrupt:
        console.say(f"What was done is in {output}; repeat the command to resume.")
        raise
    print(
        result.to_json()
        if as_json
        else f"Done: the student is {output}/student, the report {output}/report/report.html."
    )


def _estimate(prepared: Any, output: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Rows of steps and of cards, and the commands; raises ValueError where the disk is too small."""
    from asdm.cli.slim import estimate, run, steps

    with console.progress("Estimating") as tell:
        tell("counting", 0, None)
        plan = estimate.stand_in(prepared, output)
        estimates = estimate.estimates(prepared, plan, estimate.forward_seconds(prepared))
        fits = estimate.fits(prepared, plan)
    folder = next(path for path in (output, *output.absolute().parents) if path.exists())
    needs, free = sum(step.disk_bytes for step in estimates), shutil.disk_usage(folder).free
    if needs > free:
        raise ValueError(f"the run writes about {needs / 2**30:.1f} GiB, and {folder} has {free / 2**30:.1f} GiB free.")
    rows = [
        {
            "step": one.name,
            "seconds": round(one.seconds),
            "memory_bytes": one.memory_bytes,
            "disk_bytes": one.disk_bytes,
        }
        for one in estimates
    ]
    cards = [{"gib": fit.gib, "fits": fit.options is not None, "options": fit.options and list(fit.options),
              "needs_bytes": fit.needs_bytes} for fit in fits]  # fmt: skip
    every = steps.steps_of(
        prepared.checkpoint, prepared.settings, prepared.data, prepared.pictures, output, prepared.left_out
    )
    return rows, cards, run.lines_of(every)


def _about(seconds: float) -> str:
    """A rough time in the largest unit of which it has two or more."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"


def _print_estimate(rows: list[dict[str, Any]], cards: list[dict[str, Any]], commands: list[str]) -> None:
    table = [
        {
            "step": row["step"],
            "about": _about(row["seconds"]),
            "memory": f"{row['memory_bytes'] / 2**30:.2f} GiB",
            "disk": f"{row['disk_bytes'] / 2**30:.2f} GiB",
        }
        for row in rows
    ]
    console.emit(table, console.Format.table)
    print()
    for card in cards:
        options = " ".join(card["options"] or ())
        how = f"with {options}" if options else "as it is"
        verdict = f"suffice for training in fp16 {how}" if card["fits"] else "do not suffice for training"
        print(f"{card['gib']} GiB {verdict} ({card['needs_bytes'] / 2**30:.1f} GiB).")
    print("", *commands, sep="\n")
