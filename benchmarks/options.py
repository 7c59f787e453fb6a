"""More options a unit, against the edits that plans had before them, on measured joint damage (about 15 minutes).

    asdm-prof profile mini --options all -o reports/mini/options/profile.json
    asdm distill-units mini -o units/
    asdm-prof sensitivity mini --replacement all --race --profile reports/mini/options/profile.json --units units/ \\
        --plans 12 --prompts 32 -o reports/mini/options/damage.json
    python -m benchmarks.options reports/mini/options --units units/

At each budget the few best plans by prediction are built with the library's units and measured on the calibration
prompts, the best of them is taken, and then everyone is measured on prompts of another split: the new plan, the plan
from layers, units and GRI alone (from the same calibration, or that of `--before`), and the baselines. Writes
options.json and a figure, in which the networks of `benchmarks.pruning` stand too where pruning.json is in the folder.
A folder without damage.json has no weights to judge: then the table of what each replacement is worth is printed by the
structural prior.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from asdm.cli.options import this_command
from asdm.measure import clocks, machine
from asdm.plan.edits import AnyEdit, ReplaceUnit
from asdm.utils import console as terminal, registry
from asdm.utils.progress import Tell
from asdm.utils.record import Frozen, Record, later, utc_now
from asdm_prof.planner import milp, plan
from asdm_prof.planner.choices import edits_key
from asdm_prof.planner.frontier import exact_frontier, k_plans
from asdm_prof.planner.problem import Problem
from asdm_prof.records import Damage, Interval, Profile
from asdm_prof.renderers.figures.style import COLOURS, INK, TWO_COLUMNS, one_panel, powers_of_ten
from asdm_prof.sensitivity.measure import damage_of, measure_damage
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks import baselines
from benchmarks.pruning import Pruning
from benchmarks.script import Readme, Threads, put_into_results, run, save_figure

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
BEFORE = ("gri_attention", "cond_conv")  # timed at the highest resolution
JUDGED_ON = "held_out"
Edits = tuple[AnyEdit, ...]


class Judged(Frozen):
    """A plan at a budget, with its measured joint damage on prompts that nothing was chosen by."""

    name: str
    ratio: float  # predicted latency, student / teacher
    predicted: float | None
    damage: Interval
    edits: tuple[AnyEdit, ...]


class OptionsRow(Frozen):
    """One budget; None where the planner from before reaches no plan."""

    budget: float
    new: Judged
    before: Judged | None
    baselines: tuple[Judged, ...]

    @property
    def best_baseline(self) -> Judged | None:
        return min(self.baselines, key=lambda one: one.damage.value, default=None)


class Share(Frozen):
    """A replacement's part in the frontier, and what plans lose without it."""

    replacement: str
    units: int  # that it was measured in after the race
    frontier_plans: float  # share of the plans of the frontier, from 0.9 of the latency down, in which it stands
    best_plans: int  # of the best plans at the budgets
    without: dict[str, float | None] = later({})  # budget → predicted damage without it / with it; None: not reachable


class Options(Record, schema="asdm.options/1"):
    """`asdm.options/1`: plans from all options against plans from before, and what each replacement is worth."""

    created_utc: str
    command: str
    family: str
    weights_sha256: str
    profile_sha256: str
    damage_sha256: str
    before_sha256: str
    units_sha256: str | None
    candidates: int
    prompts: int
    timesteps: tuple[int, ...]
    choices: int
    undominated: int
    rows: tuple[OptionsRow, ...]
    hand_made: tuple[Judged, ...] = later(())  # plans that depend on no budget, at their own latency
    shares: tuple[Share, ...]
    seconds: float
    environment: dict[str, str]


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with profile.json and damage.json over all options.")],
    units: Annotated[Path | None, typer.Option(help="Library of units that the damage was measured with.")] = None,
    before: Annotated[
        Path | None, typer.Option(help="Damage file of the edits from before; default: the same, of those edits.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="Best plans by prediction that are measured at each budget.")] = 5,
    prompts: Annotated[int, typer.Option(help="Pictures with captions to judge on.")] = 64,
    readme: Readme = False,
    threads: Threads = None,
) -> None:
    """Measure plans from all options, plans from before and baselines, and say what each replacement is worth."""
    profile = Profile.load(folder / "profile.json")
    if not (folder / "damage.json").exists():
        problem = Problem.of(profile)
        best = [edits for ratio in BUDGETS if (edits := _best_edits(problem, ratio)) is not None]
        terminal.emit(share_rows(shares_of(problem, best), len(best)), terminal.Format.table)
        return
    damage = Damage.load(folder / "damage.json")
    old = Damage.load(before) if before else with_dropped(damage)
    settings = SensitivitySettings(threads=threads, prompts=damage.prompts, timesteps=len(damage.timesteps),
                                   units=str(units) if units else None)  # fmt: skip
    with terminal.progress("Comparing") as tell:
        command = this_command("python -m benchmarks.options")
        result = compare(profile, damage, old, settings, candidates, prompts, tell, command)
    result.save(folder / "options.json", force=True)
    whole = Pruning.load(folder / "pruning.json") if (folder / "pruning.json").exists() else None
    if whole and (whole.weights_sha256, whole.timesteps) != (result.weights_sha256, result.timesteps):
        terminal.say("pruning.json is of other weights or noise levels, and is left out of the figure.")
        whole = None
    save_figure(lambda: figure_of(result, whole), folder / "options")
    if readme:
        worth = terminal.markdown(share_rows(result.shares, len(result.rows)))
        put_into_results("options", f"\n{terminal.markdown(rows_of(result, whole))}\n\n{worth}\n")
    terminal.emit(rows_of(result, whole), terminal.Format.table)
    terminal.emit(share_rows(result.shares, len(result.rows)), terminal.Format.table)


def with_dropped(damage: Damage) -> Damage:
    """The same calibration with the edits that its race dropped: a planner that has not their rivals may want them."""
    return damage.model_copy(update={"edits": (*damage.edits, *damage.dropped), "dropped": (), "pairs": ()})


def compare(
    profile: Profile,
    damage: Damage,
    old: Damage,
    settings: SensitivitySettings,
    candidates: int,
    prompts: int,
    tell: Tell,
    command: str,
) -> Options:
    """Both planners within each budget, and the baselines that the profile can price."""
    clock = clocks.HostClock()
    began = clock.mark()
    for one in (damage, old):
        plan.check_damage(profile, one)
    timed = profile.model_copy(update={"options": tuple(o for o in profile.options if _is_before(profile, o.edit))})
    problems = {"new": Problem.of(profile, damage=damage), "before": Problem.of(timed, damage=old)}
    plans = {
        (name, ratio): [problem.edits(s.chosen) for s in k_plans(problem, {"latency": ratio}, 0.0, candidates)]
        for name, problem in problems.items()
        for ratio in BUDGETS
        if ratio >= plan.reachable(problem, "latency")
    }
    errors = _measured(damage.family, (e for some in plans.values() for e in some), settings, tell)
    chosen = {}
    for name, ratio in plans:
        within = [e for (other, tighter), some in plans.items() if other == name and tighter <= ratio for e in some]
        chosen[name, ratio] = min(within, key=lambda edits: errors[edits_key(edits)].value)
    fixed = baselines.fixed(profile.topology)
    reached = [ratio for ratio in BUDGETS if ("new", ratio) in chosen]
    rivals = {ratio: baselines.at(problems["new"], ratio, fixed, 3, settings.seed) for ratio in reached}
    data = registry.load("asdm.data.datasets", damage.data).open_data(JUDGED_ON, damage.size)
    judging = replace(settings, split=JUDGED_ON, prompts=min(prompts, len(data)))
    priced = {name: edits for name, edits in fixed.items() if baselines.predicted_ratio(profile, edits) is not None}
    everyone = [*chosen.values(), *priced.values(), *(edits for named in rivals.values() for edits in named.values())]
    judged = _measured(damage.family, everyone, judging, tell)

    def of(name: str, edits: Edits, problem: Problem) -> Judged:
        parts = problem.chosen(edits)
        predicted = None if parts is None else problem.damage(parts)
        ratio, measured = plan.price(profile, edits).ratio, judged[edits_key(edits)]
        return Judged(name=name, ratio=ratio, edits=edits, damage=measured, predicted=predicted)

    def row(ratio: float) -> OptionsRow:
        mine = {name: of(name, chosen[name, ratio], problem) for name, problem in problems.items()
                if (name, ratio) in chosen}  # fmt: skip
        others = [of(name, edits, problems["new"]) for name, edits in rivals[ratio].items()]
        return OptionsRow(budget=ratio, new=mine["new"], before=mine.get("before"), baselines=tuple(others))

    rows = [row(ratio) for ratio in BUDGETS if ("new", ratio) in chosen]
    return Options(
        created_utc=utc_now(),
        command=command,
        family=damage.family,
        weights_sha256=damage.weights_sha256,
        profile_sha256=profile.sha256(),
        damage_sha256=damage.sha256(),
        before_sha256=old.sha256(),
        units_sha256=damage.units_sha256,
        candidates=candidates,
        prompts=judging.prompts,
        timesteps=damage.timesteps,
        choices=len(problems["new"].choices),
        undominated=len(problems["new"].choices) - len(problems["new"].dominated(["latency"])),
        rows=tuple(rows),
        hand_made=tuple(of(name, edits, problems["new"]) for name, edits in priced.items()),
        shares=tuple(shares_of(problems["new"], [row.new.edits for row in rows])),
        seconds=clock.seconds(began, clock.mark()),
        environment=machine.environment(settings.device, damage.threads),
    )


def _is_before(profile: Profile, edit: ReplaceUnit) -> bool:
    shape = profile.topology
    top = (shape.down_blocks[0], shape.mirror(shape.down_blocks[0]))
    return edit.with_ in BEFORE and not edit.options and shape.unit(edit.unit).block in top


def _measured(
    family: str, plans: Iterable[Edits], settings: SensitivitySettings, tell: Tell
) -> dict[frozenset[str], Interval]:
    unique = {edits_key(edits): edits for edits in plans}
    measured = measure_damage(family, list(unique.values()), settings, tell=tell)
    return {key: damage_of(samples) for key, samples in zip(unique, measured.samples, strict=True)}


def shares_of(problem: Problem, best: Sequence[Edits]) -> list[Share]:
    """In how many plans each replacement stands, and the least predicted damage without it over that with it."""
    front = [problem.edits(s.chosen) for s in exact_frontier(problem)
             if sum(problem.choices[i].saving for i in s.chosen) >= 0.1]  # fmt: skip
    with_it = {ratio: _least(problem, ratio) for ratio in BUDGETS}
    names = Counter({option.edit.with_: 0 for option in problem.profile.options})  # none stays where all left the race
    names.update(c.edit.with_ for c in problem.choices if isinstance(c.edit, ReplaceUnit))
    shares = []
    for name, count in sorted(names.items()):
        left = [i for i, choice in enumerate(problem.choices) if not _has(choice.edits, name)]
        without = problem.of_choices(left)
        shares.append(
            Share(
                replacement=name,
                units=count,
                frontier_plans=sum(_has(edits, name) for edits in front) / max(len(front), 1),
                best_plans=sum(_has(edits, name) for edits in best),
                without={
                    str(ratio): other / own if own and (other := _least(without, ratio)) is not None else None
                    for ratio, own in with_it.items()
                },
            )
        )
    return sorted(shares, key=lambda share: -share.frontier_plans)


def _least(problem: Problem, ratio: float) -> float | None:
    best = _best(problem, ratio)
    return best.damage if best else None


def _best_edits(problem: Problem, ratio: float) -> Edits | None:
    best = _best(problem, ratio)
    return problem.edits(best.chosen) if best else None


def _best(problem: Problem, ratio: float) -> milp.Solution | None:
    if ratio < plan.reachable(problem, "latency"):
        return None
    row = (dict(enumerate(problem.saving)), 1 - ratio, float("inf"))
    return milp.best(problem, [row], fastest=False, without=problem.dominated(["latency"]))


def _has(edits: Edits, name: str) -> bool:
    return any(isinstance(edit, ReplaceUnit) and edit.with_ == name for edit in edits)


# ---------------------------------------------------------------------------------------------- rendering


def rows_of(result: Options, whole: Pruning | None = None) -> list[dict[str, str]]:
    """A row a budget: measured joint damages, and the new plan's over the one from before."""
    rows = []
    for row in result.rows:
        rival = row.best_baseline
        within = [one for one in (whole.networks if whole else ()) if one.latency_ratio.median <= row.budget]
        narrow = min(within, key=lambda one: one.damage.value, default=None)
        rows.append({
            "budget": f"{row.budget:g}",
            "all options": _told(row.new.damage),
            "before": _told(row.before.damage) if row.before else "not reachable",
            "all / before": f"{row.new.damage.value / row.before.damage.value:.2g}" if row.before else "",
            "best baseline": f"{rival.name} {_told(rival.damage)}" if rival else "",
            "best pruned whole": f"{narrow.importance} {_told(narrow.damage)}" if narrow else "not reachable",
        })  # fmt: skip
    return rows


def _told(interval: Interval) -> str:
    return f"{interval.value:.2g} [{interval.low:.2g}, {interval.high:.2g}]"


def share_rows(shares: Iterable[Share], plans: int) -> list[dict[str, str]]:
    """A row a replacement: how often it is taken, and what plans cost without it."""
    return [
        {"replacement": share.replacement, "measured options": str(share.units),
         "of the frontier's plans": f"{share.frontier_plans:.0%}",
         f"of the {plans} best plans": str(share.best_plans)}
        | {f"without it at {ratio}": f"× {value:.2f}" if value else "–" for ratio, value in share.without.items()}
        for share in shares
    ]  # fmt: skip


def figure_of(result: Options, whole: Pruning | None = None) -> Figure:
    """Measured joint damage at each budget: all options, before, the best baseline; hand-made and pruned networks."""
    figure, axes = one_panel(TWO_COLUMNS, 3.2)
    lines = [
        ("all options", COLOURS["resnet"], "o", [(row.budget, row.new) for row in result.rows]),
        ("layers, units and GRI", COLOURS["transformer"], "s", [(r.budget, r.before) for r in result.rows if r.before]),
        ("best baseline", COLOURS["glue"], "^", [(r.budget, b) for r in result.rows if (b := r.best_baseline)]),
    ]
    for label, colour, marker, points in lines:
        x = [budget for budget, _ in points]
        axes.plot(x, [one.damage.value for _, one in points], f"-{marker}", color=colour, markersize=4, label=label)
        axes.vlines(x, [p.damage.low for _, p in points], [p.damage.high for _, p in points], color=INK, linewidth=0.6)
    for importance, marker in (("magnitude", "x"), ("importance to the output", "+")):
        ones = [one for one in (whole.networks if whole else ()) if one.importance == importance]
        if ones:
            axes.plot([one.latency_ratio.median for one in ones], [one.damage.value for one in ones], marker,
                      color=INK, markersize=4, label=f"whole network by {importance}")  # fmt: skip
    for place, one in enumerate(sorted(result.hand_made, key=lambda one: one.ratio)):
        at = one.ratio, one.damage.value
        axes.plot(*at, "d", color=INK, markersize=4)
        axes.annotate(one.name, at, (0, 7 + 8 * (place % 3)), textcoords="offset points", ha="center", fontsize=6)
    powers_of_ten(axes, "y")
    axes.invert_xaxis()
    axes.set(xlabel="latency budget (share of the teacher’s UNet call)", ylabel="measured joint damage")
    axes.margins(y=0.16)
    figure.legend(loc="outside right center")
    return figure


if __name__ == "__main__":
    run(main)
