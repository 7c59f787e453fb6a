"""Whether two sets of pictures of the same captions, drawn from the same noise, can be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from asdm.evaluate.metrics import Samples
from asdm.records.measurement import Estimate
from asdm.utils.record import Frozen

DRAWS = 10_000
RECALL_MARGIN = 0.03  # of R@1, which is a share itself
EQUIVALENT = {"frechet_distance": 0.05, "clip_score": 0.05, "recall_at_1": None}  # share of the teacher's own value


class Judged(Frozen):
    """One metric of one set of pictures, with what its interval and its paired differences are made of.

    `samples` has a value a picture, or the distance of each random half of the pictures; all sets that are compared
    have the same captions and the same halves in the same order.
    """

    value: float
    of: Literal["pictures", "halves"]
    samples: tuple[float, ...]

    @classmethod
    def rounded(cls, own: Samples) -> Judged:
        """A metric's samples to six figures, which is more than a judge can tell."""
        return cls(value=own.value, of=own.of, samples=tuple(float(f"{value:.6g}") for value in own.each))


@dataclass(frozen=True)
class Spread:
    """A value and draws of it; sets whose i-th draws are subtracted are compared on the same pictures."""

    value: float
    draws: np.ndarray

    def __sub__(self, other: Spread) -> Spread:
        return Spread(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: Spread) -> Spread:
        return Spread(self.value / other.value, self.draws / other.draws)

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.value * factor, self.draws * factor)

    def estimate(self) -> Estimate:
        """The value with its 95 % interval."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return Estimate(median=self.value, low=min(float(low), self.value), high=max(float(high), self.value))


def draws_of(judged: Judged) -> np.ndarray:
    """Draws of one set of pictures' metric, (DRAWS,): normal, with the variance that its samples tell.

    Two sets' draws vary together as their samples do, because both are weighted by the same numbers.
    """
    each = np.array(judged.samples)
    drawn: np.ndarray = judged.value + _weights(len(each)) @ (each - each.mean()) * standard_error_factor(judged)
    return drawn


def standard_error_factor(judged: Judged) -> float:
    """What makes the root of a sum of squares around the mean a metric's standard error.

    The variance of a half around the mean of the halves is that of the whole set.
    """
    n = len(judged.samples)
    return 1 / math.sqrt((n - 1) * (n if judged.of == "pictures" else 1))


@cache
def _weights(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((DRAWS, n))


def spread_of(judged: Judged) -> Spread:
    """One set of pictures' metric."""
    return Spread(judged.value, draws_of(judged))


def margin(metric: str, teacher: float) -> float:
    """The difference from a teacher's value that equivalence allows."""
    share = EQUIVALENT[metric]
    return RECALL_MARGIN if share is None else share * abs(teacher)


def within(difference: Estimate, allowed: float) -> bool:
    """Whether the whole interval of a difference is smaller than what is allowed."""
    return -allowed < difference.low <= difference.high < allowed
