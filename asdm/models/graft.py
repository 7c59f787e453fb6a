"""The combined UNet (§2.2, Fig. 4): grafted blocks with a stage-1 student's weights, the rest the teacher's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from asdm.models.families import Family, load_family
from asdm.models.student import StudentUNet, operate
from asdm.plan.edits import Edits, GraftBlock, PruningPlan, parse_edits
from asdm.plan.legality import ResolvedPlan, resolve
from asdm.records.build import FreezeAudit, Tensors
from asdm.unet.blocks import counterpart
from asdm.unet.surgery import Applied, MakeUnit, resolved_on


def with_grafts(plan: ResolvedPlan) -> ResolvedPlan:
    """The plan itself if it grafts blocks, otherwise with every block grafted that its edits compress."""
    if plan.grafted:
        return plan
    compressed = {block for block, _ in plan.removed_layers}
    compressed |= {plan.topology.unit(fqn).block for fqn in (*plan.removed_units, *plan.replaced)}
    grafted = tuple(block for block in plan.topology.blocks if block in compressed)
    edits = (*plan.edits, *(GraftBlock(block=block) for block in grafted))
    return replace(plan, plan=plan.plan.model_copy(update={"edits": edits}), grafted=grafted)


def assemble(
    teacher: nn.Module,
    stage1: nn.Module | None,
    plan: PruningPlan | ResolvedPlan,
    stage1_plan: ResolvedPlan | Edits | None = None,
    make: MakeUnit | None = None,
) -> tuple[UNet2DConditionModel, Applied]:
    """The combined UNet (§2.2, Fig. 4): grafted blocks with a stage-1 student's weights, the rest the teacher's own.

    Grafted blocks have memory of their own and are trainable; without a stage-1 student they start as copies of what
    the plan leaves of the teacher's. Everything else shares the teacher's memory and is frozen, as is what
    `plan.frozen` names. The remaining layers of a grafted block match the stage-1 student's in order; what a
    replacement adds (experts, gates) is made from the teacher. `stage1_plan` is the stage-1 student's plan or
    edits, if known. Raises ValueError naming the block that does not fit.
    """
    resolved = resolved_on(teacher, plan)
    plan = resolved.plan
    if not resolved.grafted:
        raise ValueError(f"the plan {plan.name} grafts no blocks; add graft_block edits.")
    if stage1 is not None:
        _check_same_layers(resolved, stage1_plan if stage1_plan is not None else _edits_of(stage1))
    student, applied = operate(teacher, resolved, make)
    here = {theirs: mine for mine, theirs in applied.name_map.items()}
    blocks, theirs = [here[block] for block in resolved.grafted], teacher.state_dict().keys()
    for block, mine in zip(resolved.grafted, blocks, strict=True):
        if stage1 is None:
            _graft(student.get_submodule(mine), student.get_submodule(mine), block, set())
            continue
        source = counterpart(teacher, block, stage1)
        added = {
            name
            for name in student.get_submodule(mine).state_dict()
            if applied.teacher_name(f"{mine}.{name}") not in theirs
        }
        _graft(student.get_submodule(mine), stage1.get_submodule(source), block, added)
    for module in plan.frozen:
        if not any(_is_in(name, module) for name in teacher.state_dict()):
            raise ValueError(f"the plan freezes {module}, which holds none of the teacher's weights.")
    for name, parameter in student.named_parameters():
        frozen = any(_is_in(applied.teacher_name(name), module) for module in plan.frozen)
        parameter.requires_grad_(not frozen and any(_is_in(name, block) for block in blocks))
    return student, applied


def stage1_of(plan: PruningPlan) -> str | None:
    """The stage-1 student that a plan's grafts name; raises ValueError if they name several."""
    named = sorted({edit.source for edit in plan.edits if isinstance(edit, GraftBlock) and edit.source})
    if len(named) > 1:
        raise ValueError(f"the plan's grafts name several stage-1 students ({', '.join(named)}); name only one.")
    return named[0] if named else None


def stage1_family(folder: str) -> Family:
    """The folder of a stage-1 student as a family; raises ValueError if it is not a folder."""
    if not Path(folder).is_dir():
        raise ValueError(f"the stage-1 student must be a folder, got {folder}; build and distil one first.")
    return load_family(folder)


def edits_in(stage1: Family) -> Edits | None:
    """The edits of a stage-1 student whose folder holds its plan, otherwise None."""
    path = stage1.folder / "plan.json" if stage1.folder else None
    return PruningPlan.load(path).edits if path and path.exists() else None


def _edits_of(unet: Any) -> Edits | None:
    return parse_edits(unet.config["edits"]) if isinstance(unet, StudentUNet) else None


def _check_same_layers(plan: ResolvedPlan, stage1_plan: ResolvedPlan | Edits | None) -> None:
    if stage1_plan is None:
        return
    stage1 = stage1_plan if isinstance(stage1_plan, ResolvedPlan) else resolve(plan.topology, stage1_plan)
    for block in plan.grafted:
        ours, theirs = (
            [layer for name, layer in sorted(resolved.removed_layers) if name == block] for resolved in (plan, stage1)
        )
        if ours != theirs:
            raise ValueError(
                f"cannot graft {block}: the plan removes its layers {ours or 'none'}, "
                f"the stage-1 student lacks {theirs or 'none'}; use the same layers in both."
            )


def _graft(block: nn.Module, source: nn.Module, name: str, added: set[str]) -> None:
    """Give `block` its own copy of `source`'s weights; it keeps what a replacement added and `source` lacks."""
    own, theirs = block.state_dict(), source.state_dict()
    wrong = sorted(theirs.keys() - own.keys()) + sorted(own.keys() - theirs.keys() - added)
    wrong += [key for key in own.keys() & theirs.keys() if own[key].shape != theirs[key].shape]
    if wrong:
        raise ValueError(f"cannot graft {name}: {wrong[0]} differs between the stage-1 student and the plan.")
    block.load_state_dict(
        {key: theirs.get(key, tensor).to(tensor.device, tensor.dtype, copy=True) for key, tensor in own.items()},
        assign=True,
    )


def _is_in(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def audit(student: nn.Module, teacher: nn.Module) -> FreezeAudit:
    """Which of a student's parameters are trainable, which are frozen, and which share the teacher's memory.

    Works on the meta device too.
    """
    theirs = {p.untyped_storage()._cdata for p in teacher.parameters()}
    named = dict(student.named_parameters())
    return FreezeAudit(
        trainable=_tensors({name: p for name, p in named.items() if p.requires_grad}),
        frozen=_tensors({name: p for name, p in named.items() if not p.requires_grad}),
        shared_with_teacher=_tensors({n: p for n, p in named.items() if p.untyped_storage()._cdata in theirs}),
    )


def _tensors(named: dict[str, torch.Tensor]) -> Tensors:
    return Tensors(
        names=tuple(named),
        params=sum(p.numel() for p in named.values()),
        bytes=sum(p.numel() * p.element_size() for p in named.values()),
    )
