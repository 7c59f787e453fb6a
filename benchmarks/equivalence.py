"""Whether two sets of pictures of the same captions, drawn from the same noise, can be told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from asdm.evaluate.metrics import Samples
from asdm.measure.statistics import bootstrap
from asdm.records.measurement import Estimate
from asdm.utils.io import Frozen

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
        n = min(len(self.draws), len(other.draws))
        return Spread(self.value - other.value, self.draws[:n] - other.draws[:n])

    def __truediv__(self, other: Spread) -> Spread:
        n = min(len(self.draws), len(other.draws))
        return Spread(self.value / other.value, self.draws[:n] / other.draws[:n])

    def estimate(self) -> Estimate:
        """The value with its 95 % interval."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return Estimate(median=self.value, low=min(float(low), self.value), high=max(float(high), self.value))


def draws_of(judged: Judged) -> np.ndarray:
    """Draws of one set of pictures' metric."""
    each = np.array(judged.samples)
    if judged.of == "pictures":
        return np.asarray(bootstrap(each, np.mean))
    return judged.value + each - each.mean()


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
