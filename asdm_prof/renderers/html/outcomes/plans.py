"""A plan: whether its prediction can be believed, what else there is, why it is so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from asdm.plan.edits import AnyEdit, ShadowPrice
from asdm.plan.legality import resolve
from asdm.records.measurement import Estimate
from asdm_prof.records import Budgets, Contestant, Frontier, FrontierPoint, ValidatedPlan
from asdm_prof.renderers._format import amount, number, percent, plain, plural, ratio
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.svg import Predicted, prediction_scatter
from asdm_prof.renderers.html.tables import NONE, Cell, Column, Table, damage_cell
from asdm_prof.renderers.html.unet_svg import small_u
from asdm_prof.renderers.html.view import View

PLANS_SHOWN = 6

# ---------------------------------------------------------------------------------------------- validation


def validation(view: View) -> dict[str, Any] | None:
    """Predicted against measured on random plans."""
    found = view.report.validation
    if found is None:
        return None
    rows = [_validated(plan) for plan in found.plans]
    learnt = "used" if found.correction.helps else "not used"
    return {
        "picture": prediction_scatter("validation", rows),
        "caption": plain(
            f"{plural(len(rows), 'random legal plan')}, built and measured in pairs: {percent(found.mape)} of the "
            f"teacher’s latency away on average, 95 % of them within {percent(found.p95)}, bias "
            f"{100 * found.bias:+.1f} %, rank correlation {found.rank_correlation:.3f}. The predictions’ 95 % "
            f"intervals held for {percent(found.coverage)}; the correction per kind of edit is {learnt}."
            + (f" The measured ratios are known to ±{percent(found.blur)} only." if found.is_blurred else ""),
            600,
        ),
    }


def _validated(plan: ValidatedPlan) -> Predicted:
    measured = Estimate(median=plan.measured_ratio, low=plan.measured_low, high=plan.measured_high)
    return Predicted("", plan.predicted_ratio, (plan.low, plan.high), measured)


# ---------------------------------------------------------------------------------------------- frontier


AXES = {
    "latency": "latency, student / teacher",
    "macs": "MACs, student / teacher",
    "params": "parameters, student / teacher",
}


def frontier(view: View) -> dict[str, Any] | None:
    """The least damage at each cost, with the report's own plan, and some of its plans as pictures."""
    found = view.report.frontier
    if found is None or not found.points:
        return None
    spots = _spots(found, found.points)
    told = view.report.own_point()
    own = charts.Spot("this plan", *told) if told else None
    chosen = {"best": _spots(found, found.best), "unlike": _spots(found, found.diverse)}
    return {
        "picture": charts.frontier(spots, own, chosen, AXES.get(found.by, plain(found.by, 40))),
        "caption": _frontier_caption(found, spots, own, view.profile.whole.latency_s.median),
        "rows": list(_rows_of_plans(view, found)),
    }


def _spots(found: Frontier, points: Sequence[FrontierPoint]) -> list[charts.Spot]:
    return [charts.Spot(edits_name(point.edits, SHORT), found.cost(point), point.damage) for point in points]


def _frontier_caption(found: Frontier, spots: Sequence[charts.Spot], own: charts.Spot | None, teacher_s: float) -> str:
    ordered = sorted(spots, key=lambda spot: spot.ratio)
    said = f"{plural(len(spots), 'plan')} that no other beats in both, from {ratio(ordered[0].ratio)}; damage is from "
    said += f"the {found.damage_from}."
    marks = [(found.best, "squares: the {} best within the budgets"), (found.diverse, "on their tip: {} unlike ones")]
    for some, text in marks:
        said += f" {text.format(len(some)).capitalize()}." if some else ""
    price = _step_price(ordered, own.ratio, teacher_s) if own and found.by == "latency" else None
    if price is not None:
        said += f" Around this plan, one more millisecond saved costs {amount(price)} of damage."
    return plain(said, 500)


def _step_price(ordered: Sequence[charts.Spot], at: float, teacher_s: float) -> float | None:
    """Damage per millisecond between the frontier's plans on both sides of a ratio."""
    below = [spot for spot in ordered if spot.ratio < at - 1e-9]
    above = [spot for spot in ordered if spot.ratio >= at - 1e-9]
    if not below or not above or above[0].ratio == below[-1].ratio:
        return None
    rise = below[-1].damage - above[0].damage
    return rise / (1e3 * teacher_s * (above[0].ratio - below[-1].ratio))


def _rows_of_plans(view: View, found: Frontier) -> Iterator[dict[str, Any]]:
    """A few plans from fast to slow; where a budget was asked for, the best within it, and unlike ones."""
    order = sorted(found.points, key=found.cost)
    step = max(1.0, (len(order) - 1) / (PLANS_SHOWN - 1))
    along = [order[i] for i in dict.fromkeys(min(round(n * step), len(order) - 1) for n in range(PLANS_SHOWN))]
    for name, points in (
        ("Along the frontier", along),
        ("The best within the budget", found.best[:PLANS_SHOWN]),
        ("Good ones that are unlike each other", found.diverse[:PLANS_SHOWN]),
    ):
        shown = list(_small_plans(view, points, f"plans-{name.partition(' ')[0].lower()}"))
        if shown:
            yield {"name": name, "plans": shown}


def _small_plans(view: View, points: Sequence[FrontierPoint], name: str) -> Iterator[dict[str, Any]]:
    """Each plan as a small U; those that do not fit the profile's UNet are left out."""
    topology = view.profile.topology
    for i, point in enumerate(points):
        try:
            kept = resolve(topology, point.edits)
        except ValueError:
            continue
        yield {
            "picture": small_u(f"{name}-{i}", edits_name(point.edits), topology, kept.gone, kept.replaced),
            "ratio": ratio(point.ratio),
            "damage": f"damage {amount(point.damage)}",
            "edits": plural(len(point.edits), "edit"),
        }


SHORT = 90  # characters of a plan's name where there are a hundred of them


def edits_name(edits: Sequence[AnyEdit], most: int = 300) -> str:
    """A plan in words."""
    return plain("; ".join(map(str, edits)) or "the teacher itself", most)


# ---------------------------------------------------------------------------------------------- why, and baselines


def why(view: View) -> dict[str, Any] | None:
    """What binds the plan, what a little more of a budget is worth, and what every other choice would cost."""
    found = view.plan.why if view.plan else None
    if found is None:
        return None
    told = sorted((r for r in found.regrets if r.damage is not None), key=lambda r: (r.damage or 0.0, r.unit))
    stuck = [r.unit for r in found.regrets if r.damage is None]
    columns = [Column("unit", numeric=False), Column("in the plan", numeric=False), Column("best other", numeric=False)]
    rows = [
        [Cell(plain(r.unit)), Cell(plain(r.choice, 80)), Cell(plain(str(r.other), 80)),
         Cell(amount(r.damage or 0.0), value=r.damage)]
        for r in told
    ]  # fmt: skip
    caption = "Every unit’s other choice and the damage that it would add, the closest calls first."
    if stuck:
        caption += f" No other choice meets the budget for {', '.join(stuck)}."
    binding = f"{' and '.join(found.binding)} binds" if found.binding else "No budget binds"
    return {
        "sentence": plain(
            " ".join([f"{binding[0].upper()}{binding[1:]}.", *map(_price, found.shadow_prices.items())]), 600
        ),
        "table": Table("regrets", plain(caption, 600), [*columns, Column("damage more")], rows) if rows else None,
    }


def _price(named: tuple[str, ShadowPrice]) -> str:
    name, price = named
    said = f"One {price.per} more of {name} is worth {amount(price.damage)} of damage; {number(price.slack)} "
    said += f"{price.per} of the budget is left."
    if price.next_step is not None and price.next_saves is not None:
        said += f" {number(price.next_step)} {price.per} more would buy the next plan, which does "
        said += f"{amount(price.next_saves)} less."
    return said


def budgets(view: View) -> dict[str, Any] | None:
    """Our plan against every baseline at each budget, on measured joint damage."""
    found = view.report.budgets
    if found is None or not found.rows:
        return None
    rivals = [(row.budget, one.name, one.damage) for row in found.rows for one in row.contestants if not one.ours]
    judged = [row for row in found.rows if row.ahead is not None]
    won = sum(row.won for row in judged)
    sure = sum(row.ahead is not None and row.ahead.low > 0 for row in judged)
    return {
        "picture": charts.budgets([(row.budget, row.ours.damage) for row in found.rows], rivals),
        "caption": plain(
            f"Our plan (line) does less damage than the best baseline (squares) within {won} of "
            f"{plural(len(judged), 'budget')}, {sure} of them beyond the 95 % interval; all were measured on "
            f"{found.prompts} pictures of {found.split}, by which no plan was chosen.",
            400,
        ),
        "table": _budgets_table(found),
    }


def _budgets_table(found: Budgets) -> Table:
    columns = [
        Column("budget"),
        Column("plan", numeric=False),
        Column("latency", "student / teacher"),
        Column("measured damage"),
        Column("predicted"),
    ]
    rows = [
        [
            Cell(ratio(row.budget), value=row.budget),
            Cell(plain(one.name, 60)),
            Cell(ratio(one.ratio), value=one.ratio),
            damage_cell(one.damage),
            NONE if one.predicted is None else Cell(amount(one.predicted), value=one.predicted),
        ]
        for row in found.rows
        for one in _without_worse_random(row.contestants)
    ]
    caption = "Everyone within each budget, least measured damage first; of the random plans the best."
    return Table("budgets", caption, columns, rows)


def _without_worse_random(contestants: Sequence[Contestant]) -> list[Contestant]:
    """They stand in the order of their damage."""
    random = [one for one in contestants if one.name.startswith("random")]
    return [one for one in contestants if one not in random[1:]]
