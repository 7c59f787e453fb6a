"""Budgets that no plan meets: what is reachable instead."""

from __future__ import annotations

from collections.abc import Mapping

from asdm_prof.records import Profile
from asdm_prof.renderers._format import plain, seconds


def infeasible_lines(
    lowest: float,
    alone: Mapping[str, float],
    relaxed: Mapping[str, float],
    asked: Mapping[str, str],
    profile: Profile | None,
) -> list[str]:
    """What is reachable where budgets cannot be met: each by itself, and the cheapest change that makes them meet."""
    budgets = " and ".join(plain(text if name == "latency" else f"{text} of {name}") for name, text in asked.items())
    if len(asked) > 1:
        each, together = (
            ", ".join(f"{name} {share:.3f}" for name, share in shares.items()) for shares in (alone, relaxed)
        )
        return [
            f"Error: no legal plan reaches the budgets {budgets} together. Lowest reachable by itself, of the "
            f"teacher's: {each}. Cheapest relaxation of all: {together}."
        ]
    name = next(iter(asked))
    share = lowest if name == "latency" else alone[name]
    whole = "" if name == "latency" else f"'s {name}"
    time = f", {seconds(lowest * profile.whole.latency_s.median)}" if profile is not None and not whole else ""
    return [
        f"Error: no legal plan reaches the budget {budgets}; the lowest reachable is {share:.3f} of the teacher{whole}"
        f"{time}."
    ]
