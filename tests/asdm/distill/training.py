"""Short trainings on a tiny real Stable Diffusion, stopped or not, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asdm.distill import recipes
from asdm.distill.context import TrainProgress
from asdm.distill.logger import read_log
from asdm.distill.run import distill
from asdm.distill.settings import DistillSettings

WEIGHTS = "diffusion_pytorch_model.safetensors"


def settings(**changes: Any) -> DistillSettings:
    defaults: dict[str, Any] = {"data": "emoji", "split": "held_out", "steps": 4, "batch": 4, "learning_rate": 1e-3}
    more = {"checkpoint_s": 0.0, "ema": 0.9, "validate_captions": 2, "vgg": "mini"}
    return DistillSettings(**defaults | more | changes)


def go(teacher: Path, output: Path, plan: str = "a_sdm_clme", recipe: Any = None, **changes: Any) -> Any:
    more = {
        key: changes.pop(key)
        for key in ("only", "force", "amend", "on_progress", "until", "first_stage_from")
        if key in changes
    }
    chosen = recipe or recipes.progressive_incubation
    return distill(plan, str(teacher), output, settings(**changes), chosen, **more)


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    return [{k: v for k, v in line.items() if k not in ("step_s", "images_per_s")}
            for line in read_log(folder / "log.jsonl")]  # fmt: skip


class Stop(BaseException):
    """Thrown by a watcher, in place of a power cut: no error, before which a checkpoint would be saved."""


def stop_after(step: int, stage: str) -> Any:
    def watch(status: TrainProgress) -> None:
        if status.stage == stage and status.step == step:
            raise Stop

    return watch
