"""What is kept of a stage: all that a checkpoint holds, and its student as a diffusers folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.distill.context import TrainContext
from asdm.distill.run_folder import PAUSED, stage_folder
from asdm.distill.stages import Stage, meta_student
from asdm.models import build, graft, loading
from asdm.models import student as students
from asdm.models.loading import weights_sha256
from asdm.records.build import FreezeAudit
from asdm.records.distill import StageResult
from asdm.unet import diff as treediff
from asdm.unet import hooks
from asdm.utils import snapshots


def capture_state(
    model: nn.Module, optimizer: Any, average: Any, parameters: Sequence[nn.Parameter], accelerator: Any
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Everything that learns, by its own name, however it is wrapped or sharded, and what is no tensor."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    weights = trainable_state(model)
    gathered: Any = get_optimizer_state_dict(model, optimizer.optimizer, options=_whole())
    moments = gathered.get("state", {})  # of several processes only the first is given what was gathered
    tensors = {
        "weights": weights,
        "optimizer": {
            f"{name}/{key}": torch.as_tensor(value) for name, kept in moments.items() for key, value in kept.items()
        },
    }
    plain: dict[str, Any] = {"scaler": accelerator.scaler.state_dict() if accelerator.scaler else None}
    if average:
        with ema_weights(average, parameters):
            tensors["average"] = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
        plain["average_steps"] = average.optimization_step
    return tensors, plain


def restore_state(
    found: snapshots.Checkpoint,
    model: nn.Module,
    optimizer: Any,
    average: Any,
    parameters: Sequence[nn.Parameter],
    accelerator: Any,
) -> None:
    """Put a checkpoint's tensors back where `snapshot` found them, bit by bit."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    weights: dict[str, Any] = dict(found.tensors("weights"))
    own = trainable_state(model).keys()
    if accelerator.is_main_process and weights.keys() != own:
        raise ValueError(f"{found.folder} holds other weights than this stage learns; name another output.")
    state: dict[str, Any] = {}
    for key, value in found.tensors("optimizer").items():
        name, _, what = key.rpartition("/")
        state.setdefault(name, {})[what] = value
    groups = [{**group, "params": list(weights)} for group in optimizer.state_dict()["param_groups"]]
    set_optimizer_state_dict(
        model, optimizer.optimizer, {"state": state, "param_groups": groups}, options=_whole(strict=False)
    )
    if average:
        set_model_state_dict(model, dict(found.tensors("average")), options=_whole(strict=False))
        for shadow, parameter in zip(average.shadow_params, parameters, strict=True):
            shadow.copy_(parameter.detach())
        average.optimization_step = found.state["average_steps"]
    set_model_state_dict(model, weights, options=_whole(strict=False))
    if accelerator.scaler and found.state["scaler"]:
        accelerator.scaler.load_state_dict(found.state["scaler"])


def trainable_state(model: nn.Module) -> dict[str, Any]:
    """The weights that learn, whole, by their names in the lesson."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(model, options=_whole())


def _whole(strict: bool = True) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=strict)


@contextmanager
def ema_weights(average: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The running averages in the weights' place for the length of a `with`."""
    if not average:
        yield
        return
    own = [parameter.detach().clone() for parameter in parameters]
    average.copy_to(parameters)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, tensor in zip(parameters, own, strict=True):
                parameter.copy_(tensor)


def gather_data_position(accelerator: Any, place: dict[str, Any]) -> dict[str, Any]:
    """Where the data are, of all processes."""
    if accelerator.num_processes == 1:
        return place
    from accelerate.utils import gather_object

    return {key: value for part in gather_object([place]) for key, value in part.items()}


# ---------------------------------------------------------------------------------------------- students


def save_student(context: TrainContext, stage: Stage, model: nn.Module, result: StageResult) -> None:
    """Save a stage's student as a diffusers folder, whole or not at all."""
    student = gather_student(context, stage, model)
    if context.accelerator.is_main_process:
        texts = {
            "stage.json": result.model_dump_json(indent=1) + "\n",
            "student_sha256": weights_sha256(student) + "\n",
        }
        _save(context, stage, stage, student, result.audit, stage_folder(context.folder, stage.name), texts)
    context.accelerator.wait_for_everyone()


def gather_student(context: TrainContext, stage: Stage, model: nn.Module) -> Any:
    """The student in a lesson; where it is sharded, one of its own with what all processes hold."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    student = hooks.bare(model).student
    if context.accelerator.distributed_type == "FSDP":
        whole: dict[str, Any] = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        student, _ = meta_student(context.recipe, stage)
        tensors = {name.removeprefix("student."): tensor.contiguous() for name, tensor in whole.items()}
        if context.accelerator.is_main_process:
            student.load_state_dict(tensors, strict=True, assign=True)
    return student


def student_at_pause(context: TrainContext, stage: Stage, model: nn.Module) -> Any:
    """What a student of the plan is at a pause: the last stage's own, or stage 1's blocks grafted as they are."""
    student, last = gather_student(context, stage, model), context.recipe.stages[-1]
    if stage is last:
        return student
    return graft.assemble(context.teacher, copy.deepcopy(student), last.plan, stage.plan.edits)[0]


def save_paused_student(context: TrainContext, stage: Stage, student: Any, step: int) -> None:
    """Save what a student of the plan is at a pause, with the step in `paused.json`."""
    if context.accelerator.is_main_process:
        last, path = context.recipe.stages[-1], context.folder / PAUSED
        about = {"step": step, "student_sha256": weights_sha256(student)}
        audit = graft.audit(student, context.teacher)
        _save(context, stage, last, student, audit, path, {"paused.json": json.dumps(about, indent=1) + "\n"})
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
    """A student of `stage`'s plan as a diffusers folder; a full disk names the checkpoint of the stage in training."""
    recipe = context.recipe
    small, applied = meta_student(recipe, stage)
    about = build.record(
        stage.plan,
        recipe.family,
        context.settings.weights or loading.default_weights(recipe.family),
        recipe.shapes,
        small,
        applied,
        (recipe.cost, build.count(recipe.family, small)),
        None,
        audit,
    )
    diff = {"diff.txt": treediff.render(about.diff) + "\n"}
    with snapshots.one_sentence(str(path), context.folder / "checkpoints" / trained.name):
        students.save(student, stage.plan, about, path, True, {**diff, **texts})
