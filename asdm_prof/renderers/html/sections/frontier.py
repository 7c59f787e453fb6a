"""The frontier: the least damage at each cost, with some of its plans as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from asdm.plan.edits import AnyEdit
from asdm.plan.legality import resolve
from asdm.plan.presets import PRESETS
from asdm.plan.topology import Topology
from asdm_prof.planner.problem import Problem
from asdm_prof.records import Frontier, FrontierPoint
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import amount, exponent, plain, plural, ratio, seconds
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.content import Column, Gallery, Listing, Paragraph, Section, Span, Table, missing, picture
from asdm_prof.renderers.html.tables import name_cells, table
from asdm_prof.renderers.html.unet_svg import small_u

SHOWN_PLANS = 6
SHOWN_IN_TERMINAL = 20
SHORT = 90  # characters of a plan's name where there are a hundred of them
AXES = {"latency": "latency", "macs": "MACs", "params": "parameters"}
SAVED = {"macs": "macs", "params": "params"}  # what a choice saves of each axis; of latency, `saving`
EXPLAINED = (
    "One square per unit: down on the left, up on the right, mid below. Hollow units are removed, framed ones replaced."
)


def section(report: Report) -> Section:
    """The least damage at each cost, with the report's own plan."""
    frontier = report.frontier
    axis = AXES.get(frontier.by, plain(frontier.by, 40)) if frontier else "latency"
    title = "The frontier: what each latency costs" if axis == "latency" else f"The frontier: damage by {axis}"
    if frontier is None or not frontier.points:
        command = "asdm-prof frontier --json"
        purpose = " finds the least damage at every latency."
        return Section(title, [missing("No frontier belongs to this report. ", command, purpose)])
    spots, own_point = _spots(frontier, frontier.points), report.own_point()
    own = charts.Spot("this plan", *own_point) if own_point else None
    chosen = {"best": _spots(frontier, frontier.best), "unlike": _spots(frontier, frontier.diverse),
              "hand-made": list(_hand_made(report, frontier))}  # fmt: skip
    drawn = charts.frontier(spots, own, chosen, f"{axis}, student / teacher")
    caption = _caption(frontier, spots, own, report.profile.whole.latency_s.median)
    if chosen["hand-made"]:
        caption += " Triangles: plans made by hand, the paper’s and BK-SDM’s, by the same prediction."
    chart = picture(drawn, f"{axis[0].upper()}{axis[1:]} against damage", caption)
    explained = Paragraph([EXPLAINED], "quiet small", "page")
    return Section(title, [chart, *_galleries(report.profile.topology, frontier), explained])


def of_record(frontier: Frontier) -> list[Section]:
    """What `asdm-prof frontier` prints: plans along it, and in full the best and the diverse ones within budgets."""
    kind = "the whole exact frontier" if frontier.complete else "plans along the frontier under other budgets"
    lead = f"{plain(frontier.family)}, {plain(frontier.by)} against {plain(frontier.damage_from)}: "
    step = max(1, -(-len(frontier.points) // SHOWN_IN_TERMINAL))
    sections = [
        Section("", [Paragraph([f"{lead}{plural(len(frontier.points), 'plan')}, {kind}."], "lead")]),
        Section("Along the frontier", [points_table(frontier.points[::step])]),
    ]
    for title, points in (("The best", frontier.best), ("Different from each other", frontier.diverse)):
        if points:
            names = [[", ".join(map(str, point.edits)) or "the teacher"] for point in points]
            sections.append(Section(title, [points_table(points), Listing(names, ordered=True)]))
    return sections


def points_table(points: Sequence[FrontierPoint]) -> Table:
    """Plans with what they cost and do, a line each, in the order given."""
    texts = {
        "latency": [seconds(point.latency_s) for point in points],
        "×": [ratio(point.ratio) for point in points],
        "MACs": [ratio(point.macs) for point in points],
        "params": [ratio(point.params) for point in points],
        "damage": [exponent(point.damage) for point in points],
        "edits": [str(len(point.edits)) for point in points],
    }
    fields = [(Column(name, terminal_from=0), name_cells(column)) for name, column in texts.items()]
    return table("points", "Plans of the frontier.", fields)


def _spots(frontier: Frontier, points: Sequence[FrontierPoint]) -> list[charts.Spot]:
    return [charts.Spot(plan_name(point.edits, SHORT), frontier.cost(point), point.damage) for point in points]


def _hand_made(report: Report, frontier: Frontier) -> Iterator[charts.Spot]:
    """The presets that the profile has timed every edit of; none where the frontier's damage is not the report's."""
    damage = report.damage if frontier.damage_sha256 else None
    if (damage.sha256() if damage else None) != frontier.damage_sha256:
        return
    problem, topology = Problem.of(report.profile, damage=damage), report.profile.topology
    for name, make in PRESETS.items():
        try:
            chosen = problem.chosen(make(topology))
        except (ValueError, IndexError):  # it does not fit this UNet
            continue
        if chosen:
            saved = sum(getattr(problem.choices[i], SAVED.get(frontier.by, "saving")) for i in chosen)
            yield charts.Spot(name, 1 - saved, problem.damage(chosen))


def _caption(frontier: Frontier, spots: Sequence[charts.Spot], own: charts.Spot | None, teacher_s: float) -> str:
    ordered = sorted(spots, key=lambda spot: spot.ratio)
    caption = f"{plural(len(spots), 'plan')} that no other beats in both, from {ratio(ordered[0].ratio)}; damage is "
    caption += f"from the {frontier.damage_from}."
    if frontier.best:
        caption += f" Squares: the {len(frontier.best)} best within the budgets."
    if frontier.diverse:
        caption += f" Diamonds: {len(frontier.diverse)} that differ from each other."
    price = _step_price(ordered, own.ratio, teacher_s) if own and frontier.by == "latency" else None
    if price is not None:
        caption += f" Around this plan, one more millisecond saved costs {amount(price)} of damage."
    return plain(caption, 500)


def _step_price(ordered: Sequence[charts.Spot], at: float, teacher_s: float) -> float | None:
    """Damage per millisecond between the frontier's plans on both sides of a ratio."""
    below = [spot for spot in ordered if spot.ratio < at - 1e-9]
    above = [spot for spot in ordered if spot.ratio >= at - 1e-9]
    if not below or not above or above[0].ratio == below[-1].ratio:
        return None
    rise = below[-1].damage - above[0].damage
    return rise / (1e3 * teacher_s * (above[0].ratio - below[-1].ratio))


def _galleries(topology: Topology, frontier: Frontier) -> Iterator[Gallery]:
    """A few plans from fast to slow; where a budget was asked for, the best within it, and diverse ones."""
    order = sorted(frontier.points, key=frontier.cost)
    step = max(1.0, (len(order) - 1) / (SHOWN_PLANS - 1))
    along = [order[i] for i in dict.fromkeys(min(round(n * step), len(order) - 1) for n in range(SHOWN_PLANS))]
    for title, points in (
        ("Along the frontier", along),
        ("The best within the budget", frontier.best[:SHOWN_PLANS]),
        ("Good plans that differ from each other", frontier.diverse[:SHOWN_PLANS]),
    ):
        items = list(_small_plans(topology, points, f"plans-{title.partition(' ')[0].lower()}"))
        if items:
            yield Gallery(title, items)


def _small_plans(topology: Topology, points: Sequence[FrontierPoint], name: str) -> Iterator[tuple[Markup, list[Span]]]:
    """Each plan as a small U; those that do not fit the profile's UNet are left out."""
    for i, point in enumerate(points):
        try:
            resolved = resolve(topology, point.edits)
        except ValueError:
            continue
        drawn = small_u(f"{name}-{i}", plan_name(point.edits), topology, resolved.gone, resolved.replaced)
        edits = Span(plural(len(point.edits), "edit"), "quiet")
        yield drawn, [Span(ratio(point.ratio), "strong"), Span(f"damage {amount(point.damage)}", "line"), edits]


def plan_name(edits: Sequence[AnyEdit], longest: int = 300) -> str:
    """A plan in words."""
    return plain("; ".join(map(str, edits)) or "the teacher itself", longest)
