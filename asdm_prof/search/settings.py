"""The settings of `asdm-prof search`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSettings:
    """What a search is: every worker of a study has the same."""

    budget: str
    candidates: int = 8
    apart: int = 3
    rungs: int = 3
    steps: int = 20_000  # of training, of all candidates together
    recipe: str = "bk_sdm"
    data: str = "emoji"
    split: str = "train"
    batch: int = 16
    learning_rate: float = 1e-4
    dtype: str = "fp32"  # what training computes in
    seed: int = 0
    weights: str | None = None
    device: str = "cpu"
    threads: int | None = None
    prompts: int = 64  # pictures that teacher and student draw
    draw_steps: int = 20
    guidance_scale: float | None = None  # None: the family's
    judge: str | None = None
    metric: str = "perceptual_to_teacher"
    time_budget_s: float = 60.0  # of timing a candidate


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker may have for itself."""

    storage: str | None = None
    study: str | None = None
    checkpoint_s: float = 600.0
