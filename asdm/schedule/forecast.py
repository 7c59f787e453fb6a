"""Forecasts as weights of kept values: every method here is linear in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from asdm.schedule.schedule import Forecast

RIDGE = 0.01  # on the coefficients above the constant; the paper's own data set the least error at 0.01 to 0.1


def weights(forecast: Forecast | None, kept: Sequence[int], now: int) -> tuple[float, ...]:
    """The weight of each kept value, the oldest first, in the value at step `now`; `kept` are their steps."""
    if forecast is None or len(kept) < 2:
        return (*[0.0] * (len(kept) - 1), 1.0)
    return _weights(forecast, tuple(kept[-forecast.values :]), now, len(kept))


@cache
def _weights(forecast: Forecast, kept: tuple[int, ...], now: int, values: int) -> tuple[float, ...]:
    used = (taylor if forecast.kind == "taylor" else chebyshev)(kept, now, forecast.order)
    return (*[0.0] * (values - len(used)), *used)


def taylor(kept: Sequence[int], now: int, order: int) -> list[float]:
    """TaylorSeer (eq. 5): Σ dᵢ kⁱ/i!, where dᵢ are backward differences of the last values divided by their spacing."""
    rows = np.eye(len(kept))[::-1]  # the newest value first; each row holds the weights of the kept values
    spacing = -np.diff(np.asarray(kept, dtype=float)[::-1])
    total, factor = rows[0].copy(), 1.0
    for i in range(1, min(order, len(kept) - 1) + 1):
        rows = (rows[:-1] - rows[1:]) / spacing[: len(rows) - 1, None]
        factor *= (now - kept[-1]) / i
        total = total + factor * rows[0]
    return [float(weight) for weight in total]


def chebyshev(kept: Sequence[int], now: int, order: int) -> list[float]:
    """Spectrum: Chebyshev polynomials fitted to the kept values by ridge regression, evaluated at `now`."""
    steps = np.asarray([*kept, now], dtype=float)
    scaled = 2 * (steps - steps[0]) / max(steps[-1] - steps[0], 1.0) - 1
    basis = np.polynomial.chebyshev.chebvander(scaled, min(order, len(kept) - 1))
    fit, at = basis[:-1], basis[-1]
    ridge = RIDGE * np.diag([0.0, *[1.0] * (fit.shape[1] - 1)])
    return [float(weight) for weight in at @ np.linalg.solve(fit.T @ fit + ridge, fit.T)]
