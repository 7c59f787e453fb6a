"""Medians, bootstrap intervals, paired ratios and rank correlation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asdm.records.measurement import Estimate, Latency

BOOTSTRAP_DRAWS = 2000


def estimate(samples: Sequence[float], statistic: Callable[..., Any] = np.median) -> Estimate:
    """A statistic, by default the median, with its 95 % bootstrap interval; deterministic."""
    values = np.asarray(samples, dtype=float)
    if values.size == 0:
        raise ValueError("no samples to estimate from")
    return interval(float(statistic(values)), bootstrap(values, statistic))


def interval(value: float, draws: np.ndarray) -> Estimate:
    """A value with the 95 % interval of its resampled draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(median=value, low=float(low), high=float(high))


def bootstrap(values: np.ndarray, statistic: Callable[..., Any] = np.median) -> np.ndarray:
    """`statistic` of resampled `values`, resampled along the first axis: shape (draws, …)."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), size=(BOOTSTRAP_DRAWS, len(values)))
    return statistic(values[picks], axis=1)


def latency(samples: Sequence[float]) -> Latency:
    """Samples in seconds with their median and its 95 % interval."""
    return Latency(**estimate(samples).model_dump(), samples=tuple(samples))


def relative_half_width(samples: Sequence[float]) -> float:
    """Half of the 95 % interval of the median, as a fraction of the median."""
    median = estimate(samples)
    return (median.high - median.low) / 2 / median.median


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation of two lists."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """Median ratio of two interleaved series, pair by pair, with its 95 % interval."""
    return estimate(np.asarray(numerator) / np.asarray(denominator))
