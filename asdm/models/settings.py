"""What a model runs on: weights, device, dtype, threads, seed, batch and size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """What a measurement runs on; all of it is recorded in what it produces."""

    weights: str | None = None  # None: the family's own where it has some, random ones otherwise
    device: str = "cpu"
    dtype: str = "fp32"
    threads: int | None = None
    seed: int = 0
    batch: int = 1
    size: int | None = None  # pixels
