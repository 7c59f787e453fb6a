"""Adaptive repeats of a call: warm-up, and interleaved rounds of several calls. Every raw sample is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asdm.measure.clocks import Clock

Progress = Callable[[int, float], None]  # (calls so far, estimated seconds left)


# ---------------------------------------------------------------------------------------------- repeats


def warm_up(
    call: Callable[[], float],
    tolerance: float = 0.05,
    at_least: int = 3,
    at_most: int = 20,
    budget_s: float = float("inf"),
) -> list[float]:
    """Call until the last three times agree within `tolerance`, or `budget_s` is spent; `call` returns its seconds."""
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
    budget_s: float = 120.0,
    enough: Callable[[dict[str, list[float]]], bool] = lambda _: True,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Run `calls` in the order of `pattern`, again and again: the i-th samples of two names are neighbours.

    With the pattern A B B A, a drift of the machine falls on both alike. Ends when there are `min_rounds` rounds
    and `enough(samples)` holds, or before the round that would pass `budget_s`; two rounds are always run.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started, rounds, ran = clock.mark(), 0, 0
    while rounds < max_rounds:
        for name in pattern:
            samples[name].append(calls[name]())
            ran += 1
            if progress:
                each = clock.seconds(started, clock.mark()) / ran
                progress(ran, each * max(min_rounds * len(pattern) - ran, len(pattern) - ran % len(pattern)))
        rounds += 1
        spent = clock.seconds(started, clock.mark())
        done = rounds >= min_rounds and enough(samples)
        if done or (rounds >= 2 and spent + spent / rounds > budget_s):
            break
    return samples
