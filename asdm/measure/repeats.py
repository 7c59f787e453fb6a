"""Adaptive repeats: warm-up of one call, and interleaved rounds of several calls with every raw sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from asdm.measure.clocks import Clock
from asdm.measure.device import is_gpu

Progress = Callable[[int, float], None]  # (calls so far, estimated seconds left)
MIN_ROUNDS = 2  # run whatever the budget
GPU_FLOOR_S = 2.0  # a few calls on a GPU are over before its clock has settled


def least_seconds(device: str) -> float:
    """Seconds that a measurement lasts at least, however soon there are enough samples."""
    return GPU_FLOOR_S if is_gpu(device) else 0.0


def warm_up(
    call: Callable[[], float],
    tolerance: float = 0.05,
    at_least: int = 3,
    at_most: int = 20,
    budget_s: float = math.inf,
) -> list[float]:
    """Call until the last three times agree within `tolerance` or `budget_s` is spent; `call` returns its seconds."""
    times: list[float] = []
    while len(times) < at_most:
        times.append(call())
        last = times[-3:]
        settled = len(last) >= min(3, at_least) and max(last) <= min(last) * (1 + tolerance)
        if len(times) >= at_least and (settled or sum(times) >= budget_s):
            break
    return times


def interleave(
    calls: Mapping[str, Callable[[], float]],
    pattern: Sequence[str],
    clock: Clock,
    min_rounds: int = 5,
    max_rounds: int = 100,
    budget_s: float = math.inf,
    enough: Callable[[dict[str, list[float]]], bool] | None = None,
    progress: Progress | None = None,
    floor_s: float = 0.0,
) -> dict[str, list[float]]:
    """Run `calls` in the order of `pattern`, round after round: the i-th samples of two names are neighbours.

    With the pattern A B B A, a drift of the machine affects both alike. Stops after `min_rounds` rounds and `floor_s`
    seconds as soon as `enough(samples)` holds (at once without `enough`), after `max_rounds` if `floor_s` seconds are
    over, or before the round that would exceed `budget_s`; at least two rounds are run, unless `max_rounds` is 1.
    `progress` counts down to the end of the budget or of the last round, whichever comes first; where `enough` holds
    before that, the run stops early.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    most_calls = len(pattern) * (max_rounds if enough else min(min_rounds, max_rounds))
    started, rounds, ran, spent = clock.mark(), 0, 0, 0.0
    while rounds < max_rounds or spent < floor_s:
        for name in pattern:
            samples[name].append(calls[name]())
            ran += 1
            if progress:
                spent = clock.seconds(started, clock.mark())
                left_s = _seconds_left(spent, ran, MIN_ROUNDS * len(pattern), most_calls, budget_s)
                progress(ran, max(left_s, min(floor_s, budget_s) - spent))
        rounds += 1
        spent = clock.seconds(started, clock.mark())
        done = rounds >= min_rounds and spent >= floor_s and (enough is None or enough(samples))
        if done or (rounds >= MIN_ROUNDS and spent + spent / rounds > budget_s):
            break
    return samples


def _seconds_left(spent: float, ran: int, least_calls: int, most_calls: int, budget_s: float) -> float:
    """Seconds until the budget ends or `most_calls` calls are done, but never before `least_calls` are."""
    each = spent / ran
    return max(each * (least_calls - ran), min(each * (most_calls - ran), budget_s - spent))
