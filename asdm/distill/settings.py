"""How a recipe is run: what its user may set, and the check that names what cannot be."""

from __future__ import annotations

from dataclasses import dataclass

from asdm.models import execution
from asdm.models.settings import Setup

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "adamw8bit")


@dataclass(frozen=True)
class DistillSettings:
    """How a recipe is run. `batch` is a step's, over all processes.

    What is neither in a run's identity nor its tuning (`micro_batch`, `workers`, …) changes no more than rounding.
    """

    data: str
    steps: int
    split: str = "train"
    seed: int = 0
    weights: str | None = None
    device: str = "cpu"
    dtype: str = "fp32"
    size: int | None = None
    batch: int = 16
    micro_batch: int | None = None
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warm_up: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    min_snr: float = 5.0
    caption_dropout: float = 0.1
    balance: bool = False
    spike: float = 20.0
    vgg: str = "mini"
    gradient_checkpointing: bool = False
    workers: int = 2
    threads: int | None = None
    checkpoint_s: float = 600.0
    keep: int = 2
    validate_every: int = 0
    validate_captions: int = 4
    tensorboard: bool = False


def check(settings: DistillSettings) -> None:
    """Raises ValueError naming the first setting that cannot be, and its choices."""
    execution.check_setup(Setup(device=settings.device, dtype=settings.dtype, threads=settings.threads))
    at_least = {"steps": 1, "batch": 1, "micro_batch": 1, "workers": 1, "keep": 1, "seed": 0, "warm_up": 0}
    for name, least in (at_least | {"validate_every": 0}).items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} {value} is too few; choose {least} or more.")
    for name, choices in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
        if getattr(settings, name) not in choices:
            raise ValueError(f"unknown {name} {getattr(settings, name)!r}; choose from {', '.join(choices)}.")
    for name in ("learning_rate", "clip", "min_snr", "spike", "weight_decay", "checkpoint_s"):
        if not 0 <= getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} {getattr(settings, name)} cannot be; choose 0 or more.")
    for name in ("ema", "caption_dropout"):
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(f"{name} {getattr(settings, name)} cannot be; choose from 0 up to, but not, 1.")
    if settings.dtype == "fp16" and settings.device == "cpu":
        raise ValueError("fp16 autocast needs an accelerator; choose --dtype bf16 or fp32 on a CPU.")


def micro_batch(settings: DistillSettings, world: int) -> int:
    """Pictures per forward of one process; raises ValueError where the batch cannot be shared out evenly."""
    own, rest = divmod(settings.batch, world)
    micro = min(settings.micro_batch or own, own)
    if rest or micro < 1 or own % micro:
        raise ValueError(
            f"a batch of {settings.batch} cannot be shared out to {world} processes in parts of {micro or 1}; "
            f"choose a --batch that is a multiple of {world * max(micro, 1)}."
        )
    return micro
