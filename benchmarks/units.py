"""What block-local distillation is worth: damage of one plan's student from weights alone, fitted, trained, end to end.

    asdm distill-units mini -o fitted/ --plan plan.json
    asdm distill-units mini -o trained/ --plan plan.json --steps 150
    asdm distill plan.json --teacher mini --recipe bk_sdm --steps 150 -o from-edits/
    asdm distill plan.json --teacher mini --recipe bk_sdm --steps 150 --units trained/ -o from-units/
    python -m benchmarks.units plan.json --library fitted/ --library trained/ --student from-edits/ \\
        --student from-units/ -o reports/mini/options/units.json

Damage is measured on held-out prompts, all units together. From the logs of the two runs follows how many steps each
took to a loss: the mean of the output term over the last tenth of the run that starts from the edits alone. A figure of
both runs is drawn beside the JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from asdm.cli.options import Force, this_command
from asdm.distill.logger import LOG, read_log
from asdm.measure import machine
from asdm.models import loading, student as students
from asdm.models.families import load_family
from asdm.models.sources import resolve
from asdm.models.units import UnitLibrary
from asdm.plan.edits import PruningPlan
from asdm.utils import console as terminal
from asdm.utils.record import Frozen, Record, utc_now
from asdm_prof.records import Interval
from asdm_prof.renderers.figures.style import COLOURS, INK, ONE_COLUMN, one_panel, powers_of_ten
from asdm_prof.sensitivity.calibration import make_calibration
from asdm_prof.sensitivity.measure import damage_of, squared
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks.script import JsonFile, Threads, finish, run, save_figure

PROMPTS_AT_ONCE = 8


class Start(Frozen):
    """One way to a student of the plan, and its measured damage."""

    name: str
    damage: Interval
    steps: int  # of training, of units or of the whole
    seconds: float | None


class Curve(Frozen):
    """The output term of a run's loss, step by step, and the first step from which its running mean is at the goal."""

    name: str
    output: tuple[float, ...]
    reached_at: int | None


class UnitsBench(Record, schema="asdm.units-bench/1"):
    """`asdm.units-bench/1`: block-local distillation against training from the edits alone."""

    created_utc: str
    command: str
    family: str
    plan_sha256: str
    ratio: float | None
    prompts: int
    starts: tuple[Start, ...]
    goal: float | None
    curves: tuple[Curve, ...]
    environment: dict[str, str]


def main(
    plan: Annotated[Path, typer.Argument(help="The plan.")],
    output: JsonFile,
    library: Annotated[list[Path] | None, typer.Option(help="Library of its units; may be repeated.")] = None,
    student: Annotated[list[Path] | None, typer.Option(help="Trained student; may be repeated.")] = None,
    prompts: Annotated[int, typer.Option(help="Held-out pictures with captions.")] = 32,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Measure the damage of every way to a plan's student, and compare the losses of the trained ones."""
    pruning_plan = PruningPlan.load(plan)
    settings = SensitivitySettings(threads=threads, split="held_out", prompts=prompts)
    family, weights = resolve(pruning_plan.family, settings, needs="benchmarks.units")
    settings = replace(settings, weights=weights)
    teacher: Any = loading.load_teacher(family, settings)
    with machine.quiet_torch(threads, "cpu") as used, torch.inference_mode():
        data = make_calibration(family, teacher, settings)
        starts = []
        for name, steps, seconds, unet in _students(teacher, pruning_plan, library or [], student or []):
            terminal.say(f"Measuring {name}")
            damage = damage_of(_errors(teacher, unet, data))
            starts.append(Start(name=name, damage=damage, steps=steps, seconds=seconds))
    curves, goal = _curves(student or [])
    result = UnitsBench(
        created_utc=utc_now(), command=this_command("python -m benchmarks.units"), family=pruning_plan.family,
        plan_sha256=pruning_plan.sha256(), ratio=pruning_plan.predicted.ratio if pruning_plan.predicted else None,
        prompts=prompts, starts=tuple(starts), goal=goal, curves=curves, environment=machine.environment("cpu", used),
    )  # fmt: skip
    finish(result, output, force, rows_of(result))
    if curves:
        save_figure(lambda: figure_of(result), output.with_suffix(""))


def _students(
    teacher: Any, plan: PruningPlan, libraries: list[Path], folders: list[Path]
) -> Iterator[tuple[str, int, float | None, Any]]:
    yield "weights alone", 0, 0.0, students.build(teacher, plan)[0]
    for folder in libraries:
        units = UnitLibrary(folder, teacher)
        yield folder.name, units.record.steps, units.record.seconds, students.build(teacher, plan, units)[0]
    for folder in folders:
        log = read_log(folder / LOG)
        unet = loading.load_unet(load_family(str(folder)), str(folder), "cpu")
        yield folder.name, len(log), sum(line["step_s"] for line in log), unet


def _errors(teacher: Any, unet: Any, data: Any) -> np.ndarray:
    """Mean square errors (prompts, timesteps)."""
    rows = []
    for start in range(0, len(data.noisy), PROMPTS_AT_ONCE):
        inputs = data.inputs(slice(start, start + PROMPTS_AT_ONCE))
        rows.append(squared(unet(**inputs)[0] - teacher(**inputs)[0]).view(-1, len(data.timesteps)))
    return torch.cat(rows).numpy()


def _curves(folders: list[Path]) -> tuple[tuple[Curve, ...], float | None]:
    losses = {folder.name: [line["output"] for line in read_log(folder / LOG)] for folder in folders}
    if not losses:
        return (), None
    first = next(iter(losses.values()))
    goal = float(np.mean(first[-max(1, len(first) // 10) :]))
    return tuple(Curve(name=n, output=tuple(v), reached_at=_reached(v, goal)) for n, v in losses.items()), goal


def _running_mean(losses: Sequence[float]) -> tuple[int, np.ndarray]:
    """Means over windows of a tenth of the run; the first one is known after so many steps."""
    window = max(1, len(losses) // 10)
    return window, np.convolve(losses, np.ones(window) / window, mode="valid")


def _reached(losses: Sequence[float], goal: float) -> int | None:
    window, means = _running_mean(losses)
    reached = np.flatnonzero(means <= goal)
    return int(reached[0]) + window if len(reached) else None


def rows_of(result: UnitsBench) -> list[dict[str, str]]:
    """A row for every way to the student."""
    reached = {curve.name: curve.reached_at for curve in result.curves}
    return [
        {"student": start.name, "steps": str(start.steps),
         "damage": f"{start.damage.value:.3g} [{start.damage.low:.3g}, {start.damage.high:.3g}]",
         "steps to the loss": str(reached.get(start.name) or "")}
        for start in result.starts
    ]  # fmt: skip


def figure_of(result: UnitsBench) -> Figure:
    """Running means of the runs' output term over their steps, and the loss that is to be reached."""
    figure, axes = one_panel(ONE_COLUMN, 2.2)
    for curve, colour in zip(result.curves, (COLOURS["transformer"], COLOURS["resnet"], COLOURS["glue"]), strict=False):
        window, means = _running_mean(curve.output)
        axes.plot(np.arange(len(means)) + window, means, color=colour, label=curve.name.replace("-", " "))
        if curve.reached_at:
            axes.plot(curve.reached_at, result.goal, "o", color=colour, markersize=4)
    if result.goal is not None:
        axes.axhline(result.goal, color=INK, linewidth=0.6, linestyle="--")
    powers_of_ten(axes, "y")
    axes.set(xlabel="training steps of the whole student", ylabel="output term of the loss")
    axes.legend(loc="upper right")
    return figure


if __name__ == "__main__":
    run(main)
