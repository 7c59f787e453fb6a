"""The settings of the proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from asdm.distill.settings import DistillSettings
from asdm.utils.settings import Option


@dataclass(frozen=True)
class ProofSettings:
    """What all rows have in common."""

    family: Annotated[str, Option("Family with weights, or diffusers folder.")] = "mini"
    data: str = "emoji"
    split: str = "train"
    judged_on: str = "held_out"
    budget: Annotated[str, Option("Latency that ours is planned for.")] = "0.78"
    steps: Annotated[int, Option("Training steps per row, all stages together.", at_least=2)] = 400
    batch: Annotated[int, Option("Pictures per step.")] = 16
    learning_rate: Annotated[float, Option("Learning rate of every row.")] = 3e-4
    dtype: Annotated[str, Option("Autocast in training: fp32 or bf16.")] = "fp32"
    captions: Annotated[int | None, Option("Held-out captions to draw; default: all.", at_least=4)] = None
    drawing_steps: Annotated[int, Option("Denoising steps per picture.", at_least=1)] = 20
    threads: Annotated[int | None, Option("CPU threads; default: torch's.")] = None

    def identity(self) -> dict[str, Any]:
        """The settings that change the result."""
        return {name: value for name, value in vars(self).items() if name not in ("family", "threads")}

    def training(self, seed: int) -> DistillSettings:
        """How a student trains, as `asdm distill` takes it."""
        names = ("data", "split", "steps", "batch", "learning_rate", "dtype", "threads")
        return DistillSettings(seed=seed, **{name: getattr(self, name) for name in names})
