"""Random legal schedules, from few to many steps that inherit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from asdm.schedule.schedule import TEACHER, Pass, Schedule
from asdm_prof.planner.schedule.model import State, StepsModel, is_full
from asdm_prof.planner.schedule.passes import FULL

SPARSEST, DENSEST = 0.15, 0.8  # of the steps of a random schedule, those that inherit


def draw(
    family: str, passes: Mapping[str, Pass], students: Mapping[str, str], calls: int, ages: int, n: int,
    rng: np.random.Generator,
) -> list[Schedule]:  # fmt: skip
    """`n` random legal schedules, from few to many steps that inherit."""
    rules = StepsModel(passes, {}, (1.0,) * calls, min(ages, calls - 1))
    shares = np.linspace(SPARSEST, DENSEST, max(n, 2))[:n]
    return [
        Schedule(family=family, networks=dict(students), passes=dict(passes), steps=tuple(_steps(rules, share, rng)))
        for share in shares
    ]  # fmt: skip


def _steps(rules: StepsModel, share: float, rng: np.random.Generator) -> list[str]:
    """A few passes of one schedule, in turns of random lengths."""
    partial = [name for name, one in rules.passes.items() if not is_full(one)]
    full = [name for name, one in rules.passes.items() if is_full(one)]
    chosen = list(rng.choice(partial, size=min(3, len(partial)), replace=False))
    state: State | None = None
    names: list[str] = []
    for _ in range(rules.calls):
        fitting = [name for name in chosen if rules.after(state, name) and _has_values(rules.passes[name], state)]
        if fitting and rng.random() < share:
            name = str(rng.choice(fitting))
        elif state and state.network != TEACHER:
            name = str(rng.choice([state.network, FULL], p=[0.8, 0.2]))
        else:
            name = str(rng.choice(full)) if rng.random() < 0.2 else FULL
        names.append(name)
        state = rules.after(state, name)
    return names


def _has_values(one: Pass, state: State | None) -> bool:
    return one.forecast is None or bool(state and state.gap)
