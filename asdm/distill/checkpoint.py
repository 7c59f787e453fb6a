"""A stage's checkpoints, and its student as a diffusers folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from asdm.data import loader
from asdm.distill.context import TrainContext
from asdm.distill.run_folder import PAUSED, stage_folder
from asdm.distill.stages import Stage, meta_student
from asdm.models import build, graft, student as students
from asdm.models.loading import weights_sha256
from asdm.records.build import FreezeAudit
from asdm.records.distill import StageResult
from asdm.unet import diff as treediff, hooks
from asdm.utils import snapshots


def capture_state(
    model: nn.Module, optimizer: Any, ema: Any, parameters: Sequence[nn.Parameter], accelerator: Any
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """A checkpoint's tensors by their own names, whatever wraps or shards the model, and its plain state."""
    weights = trainable_state(model)
    gathered: Any = get_optimizer_state_dict(model, optimizer.optimizer, options=_options())
    state = gathered.get("state", {})  # gathered by the main process only
    moments = {f"{name}/{key}": torch.as_tensor(v) for name, entries in state.items() for key, v in entries.items()}
    tensors = {"weights": weights, "optimizer": moments}
    plain: dict[str, Any] = {"scaler": accelerator.scaler.state_dict() if accelerator.scaler else None}
    if ema:
        with ema_weights(ema, parameters):
            tensors["average"] = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
        plain["average_steps"] = ema.optimization_step
    return tensors, plain


def restore_state(
    checkpoint: snapshots.Checkpoint,
    model: nn.Module,
    optimizer: Any,
    ema: Any,
    parameters: Sequence[nn.Parameter],
    accelerator: Any,
) -> None:
    """Load what `capture_state` saved, bit by bit."""
    weights: dict[str, Any] = dict(checkpoint.tensors("weights"))
    if accelerator.is_main_process and weights.keys() != trainable_state(model).keys():
        raise ValueError(
            f"{checkpoint.folder} does not hold the weights that this stage trains; choose another output."
        )
    state: dict[str, Any] = {}
    for key, value in checkpoint.tensors("optimizer").items():
        name, _, moment = key.rpartition("/")
        state.setdefault(name, {})[moment] = value
    groups = [{**group, "params": list(weights)} for group in optimizer.state_dict()["param_groups"]]
    set_optimizer_state_dict(
        model, optimizer.optimizer, {"state": state, "param_groups": groups}, options=_options(strict=False)
    )
    if ema:
        set_model_state_dict(model, dict(checkpoint.tensors("average")), options=_options(strict=False))
        for shadow, parameter in zip(ema.shadow_params, parameters, strict=True):
            shadow.copy_(parameter.detach())
        ema.optimization_step = checkpoint.value("average_steps")
    set_model_state_dict(model, weights, options=_options(strict=False))
    if accelerator.scaler and checkpoint.value("scaler"):
        accelerator.scaler.load_state_dict(checkpoint.value("scaler"))


def trainable_state(model: nn.Module) -> dict[str, Any]:
    """The trained weights, unsharded, by their names in the task."""
    return get_model_state_dict(model, options=_options())


def _options(strict: bool = True, frozen: bool = False) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=not frozen, strict=strict)


@contextmanager
def ema_weights(ema: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Replace the weights by their EMA inside the `with`."""
    if not ema:
        yield
        return
    weights = [parameter.detach().clone() for parameter in parameters]
    ema.copy_to(parameters)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, tensor in zip(parameters, weights, strict=True):
                parameter.copy_(tensor)


def gather_data_position(accelerator: Any, position: dict[str, Any]) -> dict[str, Any]:
    """The position in the data of all processes."""
    if accelerator.num_processes == 1:
        return position
    from accelerate.utils import gather_object

    return loader.merged(gather_object([position]))


# ---------------------------------------------------------------------------------------------- students


def save_student(context: TrainContext, stage: Stage, model: nn.Module, result: StageResult) -> None:
    """Save a stage's student as a diffusers folder, atomically."""
    student = gather_student(context, stage, model)
    if context.accelerator.is_main_process:
        sha256, path = weights_sha256(student), stage_folder(context.folder, stage.name)
        texts = {"stage.json": result.model_dump_json(indent=1) + "\n", "student_sha256": sha256 + "\n"}
        _save(context, stage, stage, student, result.audit, path, texts)
    context.accelerator.wait_for_everyone()


def gather_student(context: TrainContext, stage: Stage, model: nn.Module) -> Any:
    """The student; where it is sharded, a new one with the weights of all processes."""
    student = hooks.bare(model).student
    if context.accelerator.distributed_type == "FSDP":
        weights: dict[str, Any] = get_model_state_dict(model, options=_options(frozen=True))
        student, _ = meta_student(context.recipe, stage)
        tensors = {name.removeprefix("student."): tensor.contiguous() for name, tensor in weights.items()}
        if context.accelerator.is_main_process:
            student.load_state_dict(tensors, strict=True, assign=True)
    return student


def student_at_pause(context: TrainContext, stage: Stage, model: nn.Module) -> Any:
    """The plan's student at a pause: the last stage's student, or an earlier stage's blocks grafted as they are."""
    student, last = gather_student(context, stage, model), context.recipe.stages[-1]
    if stage is last:
        return student
    plans = context.recipe.plans
    return graft.assemble(context.teacher, copy.deepcopy(student), plans[last.name], plans[stage.name])[0]


def save_paused_student(context: TrainContext, stage: Stage, student: Any, step: int) -> None:
    """Save the plan's student at a pause, with the step in `paused.json`."""
    if context.accelerator.is_main_process:
        last, path = context.recipe.stages[-1], context.folder / PAUSED
        record = {"step": step, "student_sha256": weights_sha256(student)}
        audit = graft.audit(student, context.teacher)
        _save(
            context,
            stage,
            last,
            student,
            audit,
            path,
            {"paused.json": json.dumps(record, indent=1, allow_nan=False) + "\n"},
        )
    context.accelerator.wait_for_everyone()


def _save(
    context: TrainContext,
    trained: Stage,
    stage: Stage,
    student: Any,
    audit: FreezeAudit,
    path: Path,
    texts: Mapping[str, str],
) -> None:
    """Save a student of `stage`'s plan; the error for a full disk names the checkpoint of the stage in training."""
    recipe = context.recipe
    shapes, applied = meta_student(recipe, stage)
    record = build.record(
        stage.plan,
        recipe.family,
        str(context.settings.weights),
        recipe.meta_teacher,
        shapes,
        applied,
        (recipe.cost, build.count(recipe.family, shapes)),
        None,
        audit,
    )
    diff = {"diff.txt": treediff.render(record.diff) + "\n"}
    with snapshots.one_sentence(str(path), context.folder / "checkpoints" / trained.name):
        students.save(student, stage.plan, record, path, True, {**diff, **texts})
