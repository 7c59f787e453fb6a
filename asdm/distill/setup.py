"""What a stage needs before its first step: student, objective, optimizer and EMA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.distill import losses
from asdm.distill.context import TrainContext
from asdm.distill.run_folder import stage_folder
from asdm.distill.settings import DistillSettings
from asdm.distill.stages import Stage, active_terms, build_student
from asdm.distill.task import Objective
from asdm.models import example_inputs, loading
from asdm.models.families import load_family
from asdm.models.units import UnitLibrary
from asdm.unet import hooks
from asdm.unet.surgery import Applied


def make_student(context: TrainContext, stage: Stage) -> tuple[Any, Applied]:
    """A stage's student with weights: the teacher pruned by the plan, or the combined UNet."""

    def load_student(name: str) -> nn.Module:
        source = stage_folder(context.folder, name)
        if not source.is_dir():
            raise ValueError(
                f"the stage {stage.name} grafts blocks of the stage {name}, whose student is not in {source}; "
                f"run --stage {name} first."
            )
        student = loading.load_unet(load_family(str(source)), str(source), str(context.accelerator.device))
        _check_saved(source, student)
        return student

    units = UnitLibrary(context.settings.units, context.teacher) if context.settings.units else None
    return build_student(context.recipe, stage, context.teacher, load_student, units)


def _check_saved(folder: Path, student: nn.Module) -> None:
    """Raises ValueError where a stage's student is not the one that was saved."""
    hash_file = folder / "student_sha256"
    if hash_file.exists() and hash_file.read_text().strip() != loading.weights_sha256(student):
        raise ValueError(
            f"{folder} is damaged: its weights have another hash than when they were saved; delete it, and the same "
            f"command trains the stage {folder.name} again."
        )


def make_objective(
    context: TrainContext, stage: Stage, student: Any, applied: Applied
) -> tuple[Objective, dict[str, float]]:
    """A stage's objective, and the weight of each term."""
    family = context.recipe.family
    inputs = example_inputs.unet_inputs(family, size=2 * family.size_step, device=str(context.accelerator.device))
    places = losses.find_places(stage.weights, student, applied.name_map)
    places = hooks.comparable(student, context.teacher, places, inputs)
    weights, _ = active_terms(stage, student, places)
    objective = Objective(
        terms=tuple(weights),
        places=places,
        prediction_type=context.prediction_type,
        mode=stage.mode,
        normalise=stage.normalise,
        min_snr=context.settings.min_snr or None,
        networks={name: losses.load(name).load_network(context) for name in weights if losses.needs_network(name)},
    )
    return objective, weights


def make_optimizer(parameters: Sequence[nn.Parameter], settings: DistillSettings) -> torch.optim.Optimizer:
    """AdamW, in one kernel on a GPU, or bitsandbytes' AdamW with 8-bit moments."""
    arguments: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        fused = all(parameter.device.type == "cuda" for parameter in parameters)
        return torch.optim.AdamW(parameters, fused=fused or None, **arguments)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError:
        raise ValueError("adamw8bit needs the package 'bitsandbytes', which is not installed; choose adamw.") from None
    return AdamW8bit(parameters, **arguments)


def make_ema(parameters: Sequence[nn.Parameter], settings: DistillSettings) -> Any:
    """diffusers' exponential moving average of the weights, or None."""
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=settings.ema, foreach=True) if settings.ema else None
