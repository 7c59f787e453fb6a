"""Plans: what one buys and why, what cannot be met, the frontier, and budgets beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asdm.plan.edits import AnyEdit, GraftBlock, PruningPlan, RemoveLayer, RemoveUnit, ReplaceUnit, Why
from asdm.plan.topology import Topology
from asdm_prof.records import Budgets, Frontier, FrontierPoint, PartRecord, Profile
from asdm_prof.renderers._format import (
    between,
    exponent,
    number,
    percent,
    plain,
    plural,
    ratio,
    ratio_interval,
    seconds,
)
from asdm_prof.renderers.console.layout import blank_table, print_section


def plan_lines(plan: PruningPlan, profile: Profile) -> list[str]:
    """The plan in words: what it promises, each edit with the time it touches, and the solver's proof."""
    lines = [_promise(plan)]
    lines += [f"  {plain(str(edit))}: {_time_of(edit, profile)} of time" for edit in plan.edits]
    if plan.validation_sha256 is not None:
        lines.append(f"Its interval is from the errors of validation {plain(plan.validation_sha256[:12])}.")
    if plan.damage_sha256 is not None:
        lines.append(f"Damage is as measured in {plain(plan.damage_sha256[:12])}.")
    elif plan.damage_from is not None:
        lines.append(f"Damage is from the {plain(plan.damage_from)}.")
    if plan.proof is not None:
        proof = plan.proof
        lines.append(
            f"Solver: {plain(proof.status)}; damage {number(proof.damage)}, proven bound {number(proof.bound)}, "
            f"gap {number(proof.gap)}."
        )
    if plan.why is not None:
        lines += why_lines(plan.why)
    return lines


SHOWN_REGRETS = 5


def why_lines(why: Why) -> list[str]:
    """What binds, what a little more of a budget is worth, and the units whose other choice does least and most."""
    lines = ["Why: " + (f"{' and '.join(why.binding)} binds." if why.binding else "no budget binds.")]
    for name, price in why.shadow_prices.items():
        text = f"  {plain(name)}: {exponent(price.damage)} damage per {plain(price.per)}, {number(price.slack)} left"
        if price.next_step is not None and price.next_saves is not None:
            text += f"; {number(price.next_step)} {plain(price.per)} more would save {exponent(price.next_saves)}"
        lines.append(f"{text}.")
    told = sorted((r for r in why.regrets if r.damage is not None), key=lambda r: (r.damage or 0.0, r.unit))
    shown = told if len(told) <= 2 * SHOWN_REGRETS else [*told[:SHOWN_REGRETS], *told[-SHOWN_REGRETS:]]
    for place, regret in enumerate(shown):
        if place == SHOWN_REGRETS and len(told) > len(shown):
            lines.append(f"  … {len(told) - len(shown)} units between")
        cost = f"{exponent(regret.damage)} more" if regret.damage else "no more"
        lines.append(f"  {plain(regret.unit)}: {plain(regret.choice)}; {plain(str(regret.other))} does {cost} damage.")
    if stuck := [plain(r.unit) for r in why.regrets if r.damage is None]:
        lines.append(f"  No other choice meets the budget for {', '.join(stuck)}.")
    return lines


def infeasible_lines(
    lowest: float,
    alone: Mapping[str, float],
    relaxed: Mapping[str, float],
    asked: Mapping[str, str],
    profile: Profile | None,
) -> list[str]:
    """What is reachable where budgets cannot be met: each by itself, and the cheapest change that makes them meet."""
    said = " and ".join(plain(text if name == "latency" else f"{text} of {name}") for name, text in asked.items())
    if len(asked) > 1:
        each, together = (
            ", ".join(f"{name} {share:.3f}" for name, share in shares.items()) for shares in (alone, relaxed)
        )
        return [
            f"Error: no legal plan reaches the budgets {said} together. Lowest reachable by itself, of the teacher's: "
            f"{each}. Cheapest relaxation of all: {together}."
        ]
    name = next(iter(asked))
    share = lowest if name == "latency" else alone[name]
    whole = "" if name == "latency" else f"'s {name}"
    time = f", {seconds(lowest * profile.whole.latency_s.median)}" if profile is not None and not whole else ""
    return [
        f"Error: no legal plan reaches the budget {said}; the lowest reachable is {share:.3f} of the teacher{whole}"
        f"{time}."
    ]


def _promise(plan: PruningPlan) -> str:
    at = f" at {plain(plan.budget)}" if plan.budget else ""
    text = f"{plain(plan.name).capitalize()}{at} makes {plural(len(plan.edits), 'edit')}"
    if plan.predicted is None:
        return f"{text}."
    said = plan.predicted
    return f"{text}: predicted {ratio(said.ratio)} {ratio_interval(said)}, {seconds(said.latency_s)} a call."


def _time_of(edit: AnyEdit, profile: Profile) -> str:
    """What an edit is about as a share of the UNet's time, and of a replacement what is left of it."""
    before = sum(part.share.median for part in profile.parts if _is_about(edit, part, profile.topology))
    if isinstance(edit, ReplaceUnit):
        for option in profile.options:
            if (option.unit, option.replacement) == (edit.unit, edit.with_):
                return f"{percent(before)} → {percent(option.share.median)}"
    return percent(before)


def _is_about(edit: AnyEdit, part: PartRecord, topology: Topology) -> bool:
    if isinstance(edit, RemoveLayer):
        return (part.block, part.layer) == (edit.block, edit.layer)
    if isinstance(edit, RemoveUnit | ReplaceUnit):
        return part.fqn == edit.unit
    if isinstance(edit, GraftBlock) or edit.block not in topology.down_blocks:
        return part.block == edit.block
    # The deepest pair takes along the downsampler that leads to it.
    lead = topology.samplers.get(topology.down_blocks[-2])
    return part.block in (edit.block, topology.mirror(edit.block)) or part.fqn == lead


# ---------------------------------------------------------------------------------------------- frontier

SHOWN_POINTS = 20


def print_frontier(frontier: Frontier, console: Console) -> None:
    """Some plans along the frontier, and the best and unlike ones within budgets in full."""
    kind = "the whole exact frontier" if frontier.complete else "plans along the frontier under other budgets"
    console.print(
        Text(
            f"{plain(frontier.family)}, {plain(frontier.by)} against {plain(frontier.damage_from)}: "
            f"{plural(len(frontier.points), 'plan')}, {kind}.",
            style="bold",
        )
    )
    step = max(1, -(-len(frontier.points) // SHOWN_POINTS))
    print_section(console, "Along the frontier", frontier_table(frontier.points[::step]))
    for title, points in (("The best", frontier.best), ("Unlike each other", frontier.diverse)):
        if points:
            print_section(console, title, frontier_table(points), *(Text(line) for line in _plans_in_words(points)))


def frontier_table(points: Sequence[FrontierPoint]) -> Table:
    """Plans with what they cost and do, a line each, in the order given."""
    table = blank_table()
    for title in ("latency", "×", "MACs", "params", "damage", "edits"):
        table.add_column(title, justify="right", no_wrap=True)
    for point in points:
        shares = (ratio(share) for share in (point.ratio, point.macs, point.params))
        table.add_row(seconds(point.latency_s), *shares, exponent(point.damage), str(len(point.edits)))
    return table


def _plans_in_words(points: Sequence[FrontierPoint]) -> list[str]:
    return [f"{n}. " + (", ".join(plain(str(e)) for e in p.edits) or "the teacher") for n, p in enumerate(points, 1)]


# ---------------------------------------------------------------------------------------------- budgets


def budget_rows(found: Budgets) -> list[dict[str, str]]:
    """Our plan and the best baseline at each budget, as rows of a table."""
    return [
        {
            "budget": f"{row.budget:.2f}",
            "ours ×": f"{row.ours.ratio:.3f}",
            "damage": exponent(row.ours.damage.value),
            "best baseline": plain(row.baseline.name, 16) if row.baseline else "none",
            "its damage": exponent(row.baseline.damage.value) if row.baseline else "",
            "ahead, 95 %": between(row.ahead, ".0e") if row.ahead else "",
            "won": "yes" if row.won else "no",
        }
        for row in found.rows
    ]
