"""What the places of a network gave at the last steps that computed them, for each half of guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from asdm.schedule import forecast
from asdm.schedule.legality import HalfPass

Key = tuple[Any, ...]  # network, place, and which of the place's modules
UNCONDITIONAL, CONDITIONAL = 0, 1
Halves = tuple[int, ...]  # of one call, in the order of its batch


@dataclass(frozen=True)
class Value:
    """What one call gave, of one half or of both in one batch."""

    step: int
    halves: Halves
    leaves: Sequence[torch.Tensor]
    structure: TreeSpec

    def leaves_of(self, half: int) -> Sequence[torch.Tensor]:
        if len(self.halves) == 1:
            return self.leaves
        return [leaf.chunk(2)[half] for leaf in self.leaves]

    @cached_property
    def mean(self) -> Sequence[torch.Tensor]:
        """The mean of both halves, as T-GATE keeps it."""
        if len(self.halves) == 1:
            return self.leaves
        return [torch.add(*leaf.chunk(2)) / 2 for leaf in self.leaves]


class Kept:
    """Values by key and half; `values` is how many of a key are looked back on."""

    def __init__(self, values: int) -> None:
        self.values = values
        self.by_half: dict[tuple[Key, int], list[Value]] = {}

    def clear(self) -> None:
        self.by_half.clear()

    def put(self, key: Key, step: int, halves: Halves, value: Any) -> None:
        """Keep a value: a tensor, or tensors in tuples, none of which is copied."""
        kept = Value(step, halves, *tree_flatten(value))
        for half in halves:
            history = self.by_half.setdefault((key, half), [])
            history.append(kept)
        for half in halves:
            history = self.by_half[key, half]
            wanted = {own.step for own in [*history[-self.values :], *self._history(key, half, together=True)]}
            history[:] = [own for own in history if own.step in wanted]

    def has(self, key: Key, halves: Halves) -> bool:
        return all((key, half) in self.by_half for half in halves)

    def get(self, key: Key, halves: Halves, now: int, how: HalfPass) -> Any:
        """The value to continue with at step `now`: the last one, or a forecast."""
        histories = [self._history(key, half, how.together) for half in halves]
        structure = histories[0][-1].structure
        if len(halves) == 2 and [*map(id, histories[0])] == [*map(id, histories[1])]:
            whole = [value.leaves for value in histories[0]]
            return tree_unflatten(_combined(whole, histories[0], now, how), structure)
        parts = [
            _combined(
                [value.mean if how.mean_of_halves else value.leaves_of(half) for value in history], history, now, how
            )
            for half, history in zip(halves, histories, strict=True)
        ]
        leaves = parts[0] if len(parts) == 1 else [torch.cat(pair) for pair in zip(*parts, strict=True)]
        return tree_unflatten(leaves, structure)

    def _history(self, key: Key, half: int, together: bool) -> list[Value]:
        """The values to look back on; with `together`, those of steps that computed both halves, if there are any.

        Guidance multiplies what sets the halves apart, and values of unlike ages differ by more than the halves do.
        """
        own = self.by_half[key, half]
        if together:
            steps = {value.step for value in self.by_half.get((key, 1 - half), ())}
            own = [value for value in own if value.step in steps] or own
        return own[-self.values :]


def _combined(
    leaves: Sequence[Sequence[torch.Tensor]], history: Sequence[Value], now: int, how: HalfPass
) -> list[torch.Tensor]:
    """Each leaf as the weighted sum of its kept values."""
    weights = forecast.weights(how.forecast, [value.step for value in history], now)
    used = [(weight, own) for weight, own in zip(weights, leaves, strict=True) if weight]
    if len(used) == 1 and used[0][0] == 1.0:
        return list(used[0][1])
    totals = [used[0][0] * leaf for leaf in used[0][1]]
    for weight, own in used[1:]:
        totals = [torch.add(total, leaf, alpha=weight) for total, leaf in zip(totals, own, strict=True)]
    return totals
