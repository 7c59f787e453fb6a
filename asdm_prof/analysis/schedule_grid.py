"""What ran where: every unit at every step of a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from asdm.plan.topology import Topology
from asdm.schedule.legality import HalfPass, ResolvedSchedule, resolve
from asdm.schedule.schedule import TEACHER, Schedule

COMPUTED, HALF, INHERITED, FORECAST, STUDENT = "computed", "one half", "inherited", "forecast", "student"
MARKS = {COMPUTED: "█", HALF: "▌", INHERITED: "·", FORECAST: "~", STUDENT: "s"}


@dataclass(frozen=True)
class Row:
    """Units in data-flow order that are treated alike at every step."""

    label: str
    kind: str
    states: tuple[str, ...]


def rows(topology: Topology, schedule: Schedule) -> list[Row]:
    """The grid of a schedule, neighbours that are alike in one row."""
    shapes = {TEACHER: topology} | dict.fromkeys(schedule.networks, topology)
    resolved = resolve(shapes, schedule)
    units = [(unit.label, unit.kind, _states(resolved, unit.fqn, unit.block)) for unit in topology.units]
    grouped = []
    for states, alike in groupby(units, key=lambda row: row[2]):
        labels = [(label, kind) for label, kind, _ in alike]
        name = labels[0][0] if len(labels) == 1 else f"{labels[0][0]} … {labels[-1][0]}"
        kinds = {kind for _, kind in labels}
        grouped.append(Row(name, kinds.pop() if len(kinds) == 1 else "glue", states))
    return grouped


def _states(resolved: ResolvedSchedule, fqn: str, block: str) -> tuple[str, ...]:
    states = []
    for step in resolved.steps:
        halves = [half for half in (step.conditional, step.unconditional) if half]
        ran = sum(_runs(half, fqn, block) for half in halves)
        if ran and step.conditional.network != TEACHER:
            states.append(STUDENT)
        elif ran:
            states.append(COMPUTED if ran == 2 else HALF)
        else:
            states.append(FORECAST if any(half.forecast for half in halves) else INHERITED)
    return tuple(states)


def _runs(half: HalfPass, fqn: str, block: str) -> bool:
    return half.runs and not any(place.kind in ("unit", "block") and place.fqn in (fqn, block) for place in half.places)
