"""The best schedule for every latency at once, by dynamic programming over steps, states and ticks of time.

A label is the least damage with which a state is reached in a number of ticks. Costs are rounded up to whole ticks, so
that no plan is slower than it says; the same programme with costs rounded down gives a lower bound on the damage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from asdm_prof.planner.schedule.model import State, StepsModel

TICKS = 12000  # of a whole image's UNet calls


@dataclass(frozen=True)
class Point:
    """A schedule that no other beats: ticks and the sum of its terms."""

    ticks: int
    total: float


@dataclass(frozen=True)
class Programme:
    """Labels after the last step, and how they were reached."""

    model: StepsModel
    states: list[State]
    names: list[str]
    ticks: Mapping[str, int]  # a pass's cost
    labels: np.ndarray  # (states, ticks)
    chosen: np.ndarray  # (steps, states, ticks): the pass
    before: np.ndarray  # (steps, states, ticks): the state before it

    @classmethod
    def solve(cls, model: StepsModel, ticks: Mapping[str, int], most: int) -> Programme:
        """All schedules of at most so many ticks."""
        states = _states(model)
        place = {state: i for i, state in enumerate(states)}
        names = list(ticks)
        chosen = np.full((model.calls, len(states), most + 1), -1, dtype=np.int16)
        before = np.zeros_like(chosen)
        labels = np.full((1, most + 1), np.inf)
        labels[0, 0] = 0.0
        reached: list[State | None] = [None]
        for step in range(model.calls):
            new = np.full((len(states), most + 1), np.inf)
            for i, state in enumerate(reached):
                if not np.isfinite(labels[i]).any():
                    continue
                for n, name in enumerate(names):
                    error, after = model.error(step, state, name), model.after(state, name)
                    if error is None or after is None:
                        continue
                    cost, at = ticks[name], place[after]
                    total = labels[i, : most + 1 - cost] + model.term(step, error) if cost <= most else labels[i, :0]
                    better = total < new[at, cost:]
                    new[at, cost:][better] = total[better]
                    chosen[step, at, cost:][better] = n
                    before[step, at, cost:][better] = i
            labels, reached = new, list(states)
        return cls(model, states, names, ticks, labels, chosen, before)

    def frontier(self) -> list[Point]:
        """Every point that no other beats, the fastest first."""
        points, least = [], np.inf
        for tick, total in enumerate(self.labels.min(axis=0)):
            if total < least:
                points.append(Point(tick, float(total)))
                least = total
        return points

    def best(self, most: int) -> Point | None:
        """The point of least damage within so many ticks; the fastest of those."""
        within = [point for point in self.frontier() if point.ticks <= most]
        return within[-1] if within else None

    def steps_of(self, point: Point) -> tuple[str, ...]:
        """The passes of a point's schedule, in order."""
        state, tick = int(self.labels[:, point.ticks].argmin()), point.ticks
        names: list[str] = []
        for step in reversed(range(self.model.calls)):
            name = self.names[int(self.chosen[step, state, tick])]
            state, tick = int(self.before[step, state, tick]), tick - self.ticks[name]
            names.append(name)
        return tuple(reversed(names))


def _states(model: StepsModel) -> list[State]:
    """Every state that can be reached."""
    states: dict[State | None, None] = {None: None}
    fresh: list[State | None] = [None]
    while fresh:
        reached = {after for state in fresh for name in model.passes if (after := model.after(state, name))}
        fresh = [state for state in sorted(reached) if state not in states]
        states |= dict.fromkeys(fresh)
    return [state for state in states if state is not None]


def in_ticks(
    seconds: Mapping[str, float], tick_s: float, rounded: Callable[[float], float] = np.ceil
) -> dict[str, int]:
    """Costs in ticks; what is a whole number of them but for rounding stays it."""
    return {name: int(rounded(round(s / tick_s, 6))) for name, s in seconds.items()}
