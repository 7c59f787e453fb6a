"""Plans of several models side by side: each unit's share of the time before, what is left of it, and what it becomes.

    asdm-prof plan --budget 0.65 --profile reports/sd15/options/profile.json -o sd15.json
    asdm-prof plan --budget 0.65 --profile reports/mini/options/profile.json \\
        --damage reports/mini/options/damage.json -o mini.json
    python -m benchmarks.side_by_side sd15.json mini.json --profile reports/sd15/options/profile.json \\
        --profile reports/mini/options/profile.json -o reports/mini/options/plans-0.65
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asdm.plan.edits import PruningPlan
from asdm.plan.legality import resolve
from asdm.utils import console, io
from asdm_prof.records import Profile
from asdm_prof.renderers.figures.style import COLOURS, INK, QUIET, TWO_COLUMNS, new_figure
from benchmarks.script import run, save_figure

KEPT, GONE = "kept", "removed"


def main(
    plans: Annotated[list[Path], typer.Argument(help="Plans, in the order of --profile.")],
    profile: Annotated[list[Path], typer.Option(help="The profile that each plan was made from; repeated.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Picture to write, without its ending: PNG, SVG and PDF.")
    ],
) -> None:
    """Draw the plans beside each other, and say what kinds of edits each is made of."""
    if len(plans) != len(profile):
        raise ValueError(f"every plan needs its profile, got {len(plans)} plans and {len(profile)} profiles.")
    pairs = [(PruningPlan.load(one), Profile.load(its)) for one, its in zip(plans, profile, strict=True)]
    io.make_folder(output.parent)
    save_figure(lambda: figure_of(pairs), output)
    for plan, its in pairs:
        console.say(f"{its.family}: {summary(plan, its)}")


def fates(plan: PruningPlan, profile: Profile) -> dict[str, tuple[str, float]]:
    """By unit, in data-flow order: `KEPT`, `GONE` or the replacement with its options, and the share of time left."""
    resolved = resolve(profile.topology, plan)
    replaced = {edit.unit: edit for edit in resolved.replacements}
    fate: dict[str, tuple[str, float]] = {}
    for unit in profile.units:
        if unit.fqn in resolved.gone:
            fate[unit.fqn] = GONE, 0.0
        elif edit := replaced.get(unit.fqn):
            fate[unit.fqn] = edit.what.replace("_", " "), profile.option(edit).share.median
        else:
            fate[unit.fqn] = KEPT, unit.share.median
    return fate


def summary(plan: PruningPlan, profile: Profile) -> str:
    """How many units each kind of edit takes, and how much of the call's time that saves."""
    count, saved = Counter[str](), dict[str, float]()
    shares = {unit.fqn: unit.share.median for unit in profile.units}
    for fqn, (name, left) in fates(plan, profile).items():
        kind = name.partition(" (")[0]
        count[kind] += 1
        saved[kind] = saved.get(kind, 0.0) + shares[fqn] - left
    return "; ".join(f"{n} {kind} ({-100 * saved[kind]:+.1f} %)" for kind, n in count.most_common())


def figure_of(pairs: Sequence[tuple[PruningPlan, Profile]]) -> Figure:
    """A panel for each model, a row for each unit: outlined its share of the call before, filled what is left."""
    rows = max(len(profile.units) for _, profile in pairs)
    figure = new_figure(TWO_COLUMNS, 0.16 * rows + 0.6)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (plan, profile) in zip(panels, pairs, strict=True):
        _panel(axes, plan, profile)
    return figure


def _panel(axes: Axes, plan: PruningPlan, profile: Profile) -> None:
    widest = max(unit.share.median for unit in profile.units)
    for place, (unit, (name, left)) in enumerate(zip(profile.units, fates(plan, profile).values(), strict=True)):
        before = 100 * unit.share.median
        axes.barh(place, before, height=0.72, color="none", edgecolor=QUIET, linewidth=0.5)
        axes.barh(place, 100 * left, height=0.72, color=COLOURS[unit.kind])
        if name != KEPT:
            axes.text(max(before, 100 * left) + 0.01 * 100 * widest, place, name, va="center", fontsize=5, color=INK)
    axes.set_yticks(range(len(profile.units)), [unit.label for unit in profile.units], fontsize=5)
    axes.invert_yaxis()
    axes.set(xlim=(0, 160 * widest), xlabel="share of the UNet call, %", title=profile.family)


if __name__ == "__main__":
    run(main)
