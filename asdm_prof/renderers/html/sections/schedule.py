"""A schedule: what it promises, and which unit ran at which step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from asdm.plan.topology import Topology
from asdm.schedule.schedule import Schedule
from asdm_prof.analysis import schedule_grid
from asdm_prof.records import Profile, ScheduleFrontier, ScheduleValidation
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import amount, percent, plain, plural, ratio, seconds
from asdm_prof.renderers.html.content import Cell, Column, Paragraph, Section, Table, picture
from asdm_prof.renderers.html.svg import CHARACTER, LINE, rect, svg, tag, text
from asdm_prof.renderers.html.tables import table

CELL = 14.0  # pixels of one step
OPACITY = {
    schedule_grid.COMPUTED: 1.0, schedule_grid.HALF: 0.55, schedule_grid.STUDENT: 0.8, schedule_grid.FORECAST: 0.2,
    schedule_grid.INHERITED: 0.08,
}  # fmt: skip
SHOWN_POINTS = 12


def section(report: Report) -> Section | None:
    """The report's schedule, if there is one."""
    if report.schedule is None:
        return None
    rows = schedule_grid.rows(report.profile.topology, report.schedule)
    caption = " ".join([*sentences(report.schedule), f"{_key()}."])
    drawn = _grid(rows)
    return Section("A schedule across steps", [picture(drawn, "Steps × units: what ran where", plain(caption, 900))])


def of_record(schedule: Schedule, profile: Profile, frontier: ScheduleFrontier | None = None) -> list[Section]:
    """What `asdm-prof schedule` prints: the promise, the picture, and the frontier that the schedule is a point of."""
    lines = [Paragraph([plain(line, 600)], "lead" if not n else "") for n, line in enumerate(sentences(schedule))]
    sections = [Section("", lines), Section(f"Steps × units ({_key()})", [_picture_table(profile.topology, schedule)])]
    if frontier is not None:
        sections.append(Section("Whole image: latency against damage", [frontier_table(frontier)]))
    return sections


def sentences(schedule: Schedule) -> Iterator[str]:
    """The promise of a schedule, its proof, and how often it uses which pass."""
    predicted, proof = schedule.predicted, schedule.proof
    if predicted:
        damage = schedule.predicted_damage
        yield (
            f"{schedule.family}: {ratio(predicted.ratio)} of the plain image's latency "
            f"({seconds(predicted.latency_s)}) over {plural(len(schedule.steps), 'UNet call')}"
            f"{'' if damage is None else f', damage of the final latent {amount(damage)}'}."
        )
    if proof:
        yield (
            f"Proved optimal within {percent(proof.gap)} (lower bound {amount(proof.bound)}), by "
            f"{schedule.damage_from or 'no damage'}."
        )
    yield f"Passes: {_counted(schedule.steps)}."


def _key() -> str:
    return ", ".join(f"{mark} {state}" for state, mark in schedule_grid.MARKS.items())


def _picture_table(topology: Topology, schedule: Schedule) -> Table:
    rows = schedule_grid.rows(topology, schedule)
    marks = [Cell("".join(schedule_grid.MARKS[state] for state in row.states)) for row in rows]
    fields = [
        (Column("units", numeric=False, terminal_from=0), [Cell(row.label, kind=row.kind) for row in rows]),
        (Column("steps, noisiest first", numeric=False, terminal_from=0, wraps=True), marks),
    ]
    return table("schedule", "What ran at which step.", fields)


def frontier_table(frontier: ScheduleFrontier) -> Table:
    """Points of the frontier, evenly spread in latency."""
    points = list(frontier.points)
    places = np.linspace(0, len(points) - 1, min(SHOWN_POINTS, len(points))).round().astype(int)
    shown = [points[place] for place in places]
    fields = [
        (Column("image", "×", terminal_from=0), [Cell(ratio(p.ratio), value=p.ratio) for p in shown]),
        (Column("latency", terminal_from=0), [Cell(seconds(p.latency_s), value=p.latency_s) for p in shown]),
        (Column("damage", terminal_from=0), [Cell(amount(p.damage), value=p.damage) for p in shown]),
        (Column("full steps", terminal_from=0), [Cell(str(sum(n == "full" for n in p.steps))) for p in shown]),
    ]
    return table("schedules", f"{len(points)} schedules that no other beats; some of them.", fields)


def of_validation(validation: ScheduleValidation) -> list[Section]:
    """What `asdm-prof validate --schedules` prints."""
    exact = "are exactly those of the parts that it computes" if validation.macs_exact else "differ from its parts'"
    lead = (
        f"{plural(len(validation.schedules), 'random schedule')} of {validation.calls} UNet calls "
        f"({validation.family}): "
        f"{percent(validation.mape)} off in the mean, {percent(validation.worst)} at worst, bias "
        f"{100 * validation.bias:+.1f} %. The MACs of every pass as run {exact}."
    )
    rows = validation.schedules
    fields = [
        (Column("passes", numeric=False, terminal_from=0), [Cell(plain(_counted(row.steps))) for row in rows]),
        (Column("predicted", terminal_from=0), [Cell(ratio(row.predicted_ratio)) for row in rows]),
        (Column("measured", terminal_from=0), [Cell(ratio(row.measured_ratio)) for row in rows]),
        (Column("off by", terminal_from=0), [Cell(f"{100 * row.error:+.1f} %") for row in rows]),
    ]
    shown = table("validated-schedules", "UNet time of a schedule to the plain loop's.", fields)
    return [Section("", [Paragraph([lead], "lead")]), Section("Predicted and measured", [shown])]


def _counted(steps: Sequence[str]) -> str:
    return ", ".join(f"{n} × {name}" for name, n in Counter(steps).most_common())


def _grid(rows: list[schedule_grid.Row]) -> Markup:
    """Rows of units over columns of steps; the fuller a cell, the more of it was computed."""
    left = CHARACTER * max(len(row.label) for row in rows) + 12
    steps = len(rows[0].states)
    children: list[Markup] = []
    for y, row in enumerate(rows):
        children.append(text(left - 8, LINE * y + LINE + 11, row.label, "end"))
        for x, state in enumerate(row.states):
            at = left + CELL * x, LINE * y + LINE + 1.0
            cell = rect(*at, CELL - 1, LINE - 2.0, row.kind, fill_opacity=OPACITY[state])
            children.append(tag("g", tag("title", f"step {x}: {row.label}, {state}"), cell))
    children += [text(left + CELL * x + CELL / 2, 11, str(x), "middle") for x in range(0, steps, 5)]
    width, height = left + CELL * steps + 4, LINE * (len(rows) + 1) + 8
    return svg("schedule", "Steps × units: what ran where", width, height, children)
