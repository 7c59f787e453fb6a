"""`python -m benchmarks.gpu`: everything that is measured on a GPU, in order of value.

    python -m benchmarks.gpu -o reports/h100
    python -m benchmarks.gpu --device cpu --smoke -o /tmp/smoke
    python -m benchmarks.gpu --render reports/h100 --readme

Each stage is a process with a time limit; its parts go into one of at most eight files, which is rewritten whole as a
part ends. The same command again runs what is missing, what failed and what was cut off. `--smoke` tries all of it out
on the mini and on small networks; on a CPU, what needs a GPU refuses.
"""

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import this_command
from asdm.utils import console, io
from benchmarks import script
from benchmarks.gpu import stages as table
from benchmarks.gpu.records import Files

BUDGET_S = {False: 480.0, True: 3600.0}


def main(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the result files.")] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, …; or cpu, with --smoke.")] = "cuda",
    family: Annotated[
        str | None, typer.Option(help="What stands for SD 1.5; default: sd15, or the mini with --smoke.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Small networks and short times: does it all run?")] = False,
    stages: Annotated[str, typer.Option(help="Names of stages, separated by commas; default: all.")] = "",
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds for all stages together; default: 480, on a CPU 3600.")
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(help="STAGE=SECONDS: another limit; may be repeated.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure the chosen stages again.")] = False,
    render: Annotated[Path | None, typer.Option(help="Write summary.md and report.html of a folder, and stop.")] = None,
    readme: script.Readme = False,
) -> None:
    """Measure everything on a GPU, or render what was measured."""
    if render:
        from benchmarks.gpu.render import write

        write(render, readme)
        return
    chosen, limits = table.chosen(stages), table.limits(limit or [], device)
    if output is None:
        raise ValueError("name a folder for the results with -o.")
    if device == "cpu" and not smoke:
        raise ValueError("a CPU has nothing to measure here; add --smoke to try the stages out.")
    time_budget = time_budget if time_budget is not None else BUDGET_S[device == "cpu"]
    if not 0 < time_budget < float("inf"):
        raise ValueError(f"the time budget must be a number of seconds above 0, got {time_budget:g}.")
    _run(output, device, family, smoke, chosen, time_budget, limits, force)


def _run(
    output: Path, device: str, family: str | None, smoke: bool, chosen: list[table.StageSpec], time_budget: float,
    limits: dict[str, float], force: bool,
) -> None:  # fmt: skip
    from asdm.models import execution
    from benchmarks.gpu import run
    from benchmarks.gpu.targets import rows

    execution.check_device(device)
    io.make_folder(output)
    files = Files(output, table.FILE_OF)
    if force:
        run.forget(files, chosen)
    job = {"device": device, "family": family or ("mini" if smoke else "sd15"), "smoke": smoke,
           "command": this_command("python -m benchmarks.gpu")}  # fmt: skip
    try:
        run.run_stages(chosen, output, job, limits, time_budget)
    finally:
        console.emit(run.table(files, chosen), console.Format.md)
        print()
        if figures := rows(files):
            console.emit(figures, console.Format.md)
    if any(row["state"] not in ("done", "refused") for row in run.table(files, chosen)):
        raise typer.Exit(console.FAILED)


if __name__ == "__main__":
    script.run(main)
