"""Students: the UNet that a plan leaves of its teacher, its presets, and how it is saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from asdm.models.adapters import fit_control
from asdm.models.families import Family, load_family
from asdm.models.loading import aligned, unet_config_sha256
from asdm.plan.edits import (
    AnyEdit,
    GraftBlock,
    Kept,
    PruningPlan,
    RemoveBlock,
    RemoveLayer,
    ReplaceUnit,
    Topology,
    parse_edits,
    resolve,
)
from asdm.records.measurement import BuildResult, FreezeAudit, Tensors
from asdm.unet.blocks import counterpart, skips, topology
from asdm.unet.replacements import shared_copy
from asdm.unet.surgery import Applied, apply_plan
from asdm.utils.io import whole_folder


class StudentUNet(UNet2DConditionModel):
    """A diffusers UNet whose config carries the edits that made it; loads wherever `asdm` is imported."""

    __module__ = "asdm"  # what a pipeline's folder says, so that `import asdm` is enough for diffusers to find it

    def __init__(self, edits: list[dict[str, Any]] | None = None, **teacher_config: Any) -> None:
        super().__init__(**teacher_config)
        self.register_to_config(edits=edits or [])
        parsed = parse_edits(edits or [], "config.json")
        kept, all_skips = resolve(topology(self), parsed), skips(self)
        self.applied = apply_plan(self, parsed)
        fit_control(self, all_skips, kept)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own; raises ValueError where the config would not load what is saved, as after folding."""
        with torch.device("meta"):
            loads = {
                name: tensor.shape for name, tensor in type(self).from_config(_public(self.config)).state_dict().items()
            }
        has = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if wrong := sorted(name for name in has.keys() | loads.keys() if has.get(name) != loads.get(name)):
            raise ValueError(
                f"this student is not what its edits make of its teacher ({wrong[0]} differs), so it would not load "
                "again; save the student as it was built, and fold it or load LoRA after loading it."
            )
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """diffusers' own, with weights at aligned addresses, so that a reloaded student gives the same bits."""
        found = super().from_pretrained(*args, **kwargs)
        aligned(found[0] if isinstance(found, tuple) else found)
        return found

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # diffusers reads a config's legal keys off __init__'s signature; ours are the parent's and one more.
        keys = UNet2DConditionModel._get_init_keys(input_class)
        return keys | UNet2DConditionModel._get_init_keys(UNet2DConditionModel) if "edits" in keys else keys


# ---------------------------------------------------------------------------------------------- presets


def without_layers(topology: Topology, blocks: tuple[str, ...]) -> list[AnyEdit]:
    """One layer less in each down block (its last) and in each mirrored up block (its second)."""
    edits: list[AnyEdit] = []
    for block in blocks:
        edits.append(RemoveLayer(block=block, layer=topology.layers(block)[-1]))
        edits.append(RemoveLayer(block=topology.mirror(block), layer=topology.layers(topology.mirror(block))[1]))
    return edits


def a_sdm(topology: Topology) -> list[AnyEdit]:
    """The paper's assembly (§2.2–2.4): a layer less in the shallowest pair, GRI on the attention left there."""
    down = topology.down_blocks[0]
    edits = without_layers(topology, (down,))
    gone = set(resolve(topology, edits).gone)
    shallow = (down, topology.mirror(down))
    return edits + [
        ReplaceUnit(unit=unit.fqn, with_="gri_attention")
        for unit in topology.units
        if unit.kind == "transformer" and unit.block in shallow and unit.fqn not in gone
    ]


def _a_sdm_clme(topology: Topology, gate: str) -> list[AnyEdit]:
    edits = a_sdm(topology)
    gone, shallow = set(resolve(topology, edits).gone), (topology.down_blocks[0], topology.up_blocks[-1])
    return edits + [
        ReplaceUnit(unit=unit.fqn, with_="cond_conv", options={"gate": gate})
        for unit in topology.units
        if unit.kind == "resnet" and unit.block in shallow and unit.fqn not in gone
    ]


def a_sdm_clme(topology: Topology) -> list[AnyEdit]:
    """`a_sdm` with the pruned layers' kernels as experts (§2.3) in the ResNets left there, gated by their input."""
    return _a_sdm_clme(topology, "input")


def a_sdm_clme_timestep(topology: Topology) -> list[AnyEdit]:
    """`a_sdm_clme` with gates on the timestep, which fold into plain convolutions."""
    return _a_sdm_clme(topology, "timestep")


def bk_sdm_base(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Base: one layer less in every block."""
    return without_layers(topology, topology.down_blocks)


def bk_sdm_small(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Small: Base without the middle block."""
    return [*bk_sdm_base(topology), RemoveBlock(block="mid_block")]


def bk_sdm_tiny(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Tiny: Small without the deepest pair."""
    shallower = without_layers(topology, topology.down_blocks[:-1])
    return [*shallower, RemoveBlock(block="mid_block"), RemoveBlock(block=topology.down_blocks[-1])]


PRESETS: dict[str, Callable[[Topology], list[AnyEdit]]] = {
    preset.__name__: preset
    for preset in (a_sdm, a_sdm_clme, a_sdm_clme_timestep, bk_sdm_base, bk_sdm_small, bk_sdm_tiny)
}


def read_plan(source: str, teacher: nn.Module, family: str) -> PruningPlan:
    """A plan from a preset's name or a file, checked against its teacher.

    Raises ValueError for neither, for a plan that was made for another teacher, and for an edit that does not fit.
    """
    shape, sha256 = topology(teacher), unet_config_sha256(teacher.config)
    if source in PRESETS:
        try:
            edits = tuple(PRESETS[source](shape))
            resolve(shape, edits)
        except (ValueError, IndexError) as error:
            raise ValueError(f"the preset {source} does not fit {family}: {error}") from None
        return PruningPlan(name=source, family=family, teacher_config_sha256=sha256, edits=edits)
    if not Path(source).exists():
        raise ValueError(f"{source!r} is neither a plan file nor a preset; choose from {', '.join(PRESETS)}.")
    plan = PruningPlan.load(source)
    if plan.teacher_config_sha256 not in (None, sha256):
        raise ValueError(
            f"{source} was made for another teacher ({plan.family}, config {str(plan.teacher_config_sha256)[:12]}) "
            f"than {family} (config {sha256[:12]}); plan again on a profile of {family}."
        )
    try:
        resolve(shape, plan.edits)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return plan


# ---------------------------------------------------------------------------------------------- build


def build(teacher: nn.Module, plan: PruningPlan) -> tuple[UNet2DConditionModel, Applied]:
    """The student of `teacher` under `plan`; it shares the teacher's tensors, and the teacher stays as it was.

    Where removal alone made it, the student is a plain `UNet2DConditionModel` that diffusers loads without asdm.
    Raises ValueError for a teacher that is a student itself: its config could not say what both plans did; and for
    a plan with grafts, which `assemble` builds.
    """
    if grafted := resolve(topology(teacher), plan.edits).grafted:
        raise ValueError(
            f"the plan {plan.name} takes {' and '.join(grafted)} from a stage-1 student; name its folder (--stage1)."
        )
    return _operate(teacher, plan)


def _operate(teacher: nn.Module, plan: PruningPlan) -> tuple[UNet2DConditionModel, Applied]:
    if isinstance(teacher, StudentUNet):
        raise ValueError(
            "the teacher is a student with edits of its own; build from its teacher, with both plans' edits."
        )
    operated = shared_copy(teacher)
    applied = apply_plan(operated, plan.edits)
    weights = operated.state_dict()
    with torch.device("meta"):
        student = _plain(teacher, plan, weights) or StudentUNet.from_config(
            _public(teacher.config) | {"edits": _plain_json(plan.edits)}
        )
    student.load_state_dict(weights, strict=True, assign=True)
    return student.eval(), applied


def _plain(teacher: nn.Module, plan: PruningPlan, weights: dict[str, torch.Tensor]) -> UNet2DConditionModel | None:
    """An unchanged diffusers UNet with exactly these weights' names and shapes, where one exists."""
    kept = resolve(topology(teacher), plan.edits)
    if kept.removed_units or kept.replaced:
        return None
    student = UNet2DConditionModel.from_config(_pruned_config(_public(teacher.config), topology(teacher), kept))
    shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    return student if shapes == {name: tensor.shape for name, tensor in weights.items()} else None


def _public(config: Any) -> dict[str, Any]:
    """A config without diffusers' own notes, one of which makes it ignore values that were once defaults."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _plain_json(edits: tuple[AnyEdit, ...]) -> list[dict[str, Any]]:
    return [edit.model_dump(mode="json", by_alias=True) for edit in edits]


def _pruned_config(config: dict[str, Any], shape: Topology, kept: Kept) -> dict[str, Any]:
    """diffusers' config of a UNet after whole layers and blocks are gone."""
    layers = [
        len([n for n in shape.layers(block) if (block, n) not in kept.removed_layers]) for block in shape.down_blocks
    ]
    if "mid_block" in kept.removed_blocks:
        config["mid_block_type"] = None
    if kept.removed_blocks - {"mid_block"}:
        layers = layers[:-1]
        for key in _PER_DOWN_BLOCK:
            if isinstance(config.get(key), list | tuple):
                config[key] = list(config[key])[:-1]
        for key in _PER_UP_BLOCK:
            if isinstance(config.get(key), list | tuple):
                config[key] = list(config[key])[1:]
    config["layers_per_block"] = layers[0] if len(set(layers)) == 1 else layers
    return config


_PER_DOWN_BLOCK = (
    "block_out_channels", "down_block_types", "attention_head_dim", "num_attention_heads", "cross_attention_dim",
    "only_cross_attention", "transformer_layers_per_block",
)  # fmt: skip
_PER_UP_BLOCK = ("up_block_types", "reverse_transformer_layers_per_block")


# ---------------------------------------------------------------------------------------------- assembly


def with_grafts(plan: PruningPlan, shape: Topology) -> PruningPlan:
    """A plan that says which blocks are grafted: as it stands, or else every block that its edits compress."""
    kept = resolve(shape, plan.edits)
    if kept.grafted:
        return plan
    compressed = {block for block, _ in kept.removed_layers}
    compressed |= {shape.unit(fqn).block for fqn in (*kept.removed_units, *kept.replaced)}
    grafts = [GraftBlock(block=block) for block in shape.blocks if block in compressed]
    return plan.model_copy(update={"edits": (*plan.edits, *grafts)})


def assemble(
    teacher: nn.Module, stage1: nn.Module | None, plan: PruningPlan, stage1_edits: tuple[AnyEdit, ...] | None = None
) -> tuple[UNet2DConditionModel, Applied]:
    """The combined UNet (§2.2, Fig. 4): grafted blocks with a stage-1 student's weights, all else the teacher's own.

    Without a stage-1 student the grafted blocks start as the plan leaves the teacher's, in memory of their own.

    What is not grafted shares the teacher's memory and is frozen, and so is what `plan.frozen` names; grafted blocks
    have memory of their own and learn. Layers that are left in a grafted block match the stage-1 student's in order;
    what a replacement adds (experts, gates) is made from the teacher. `stage1_edits` are what made the stage-1
    student, where known. Raises ValueError naming the block that does not fit.
    """
    kept = resolve(topology(teacher), plan.edits)
    if not kept.grafted:
        raise ValueError(f"the plan {plan.name} grafts no block; add graft_block edits.")
    if stage1 is not None:
        _check_same_layers(teacher, plan, stage1_edits if stage1_edits is not None else _edits_of(stage1))
    student, applied = _operate(teacher, plan)
    here = {theirs: mine for mine, theirs in applied.name_map.items()}
    blocks, theirs = [here[block] for block in kept.grafted], teacher.state_dict().keys()
    for block, mine in zip(kept.grafted, blocks, strict=True):
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
            raise ValueError(f"the plan freezes {module}, which holds no weight of the teacher.")
    for name, parameter in student.named_parameters():
        frozen = any(_is_in(applied.teacher_name(name), module) for module in plan.frozen)
        parameter.requires_grad_(not frozen and any(_is_in(name, block) for block in blocks))
    return student, applied


def stage1_of(plan: PruningPlan) -> str | None:
    """The stage-1 student that a plan's grafts name; raises ValueError where they name several."""
    named = sorted({edit.source for edit in plan.edits if isinstance(edit, GraftBlock) and edit.source})
    if len(named) > 1:
        raise ValueError(f"the plan's grafts name several stage-1 students, {' and '.join(named)}; name one.")
    return named[0] if named else None


def stage1_family(folder: str) -> Family:
    """The folder of a stage-1 student as a family; raises ValueError where it is none."""
    if not Path(folder).is_dir():
        raise ValueError(f"the stage-1 student {folder} is no folder; build and distil one, and name its folder.")
    return load_family(folder)


def edits_in(stage1: Family) -> tuple[AnyEdit, ...] | None:
    """What made a stage-1 student, where its folder holds the plan."""
    path = stage1.folder / "plan.json" if stage1.folder else None
    return PruningPlan.load(path).edits if path and path.exists() else None


def _edits_of(unet: Any) -> tuple[AnyEdit, ...] | None:
    return parse_edits(unet.config["edits"]) if isinstance(unet, StudentUNet) else None


def _check_same_layers(teacher: nn.Module, plan: PruningPlan, stage1_edits: tuple[AnyEdit, ...] | None) -> None:
    if stage1_edits is None:
        return
    ours, theirs = (resolve(topology(teacher), edits) for edits in (plan.edits, stage1_edits))
    for block in ours.grafted:
        mine, yours = ([layer for b, layer in sorted(kept.removed_layers) if b == block] for kept in (ours, theirs))
        if mine != yours:
            raise ValueError(
                f"cannot graft {block}: the plan removes its layers {mine or 'none'}, "
                f"the stage-1 student lacks {yours or 'none'}; use the same layers in both."
            )


def _graft(block: nn.Module, source: nn.Module, name: str, added: set[str]) -> None:
    """Give `block` its own copy of `source`'s weights; what a replacement added and `source` has not, it keeps."""
    own, given = block.state_dict(), source.state_dict()
    wrong = sorted(given.keys() - own.keys()) + sorted(own.keys() - given.keys() - added)
    wrong += [key for key in own.keys() & given.keys() if own[key].shape != given[key].shape]
    if wrong:
        raise ValueError(f"cannot graft {name}: the stage-1 student and the plan differ there in {wrong[0]}.")
    block.load_state_dict(
        {key: given.get(key, tensor).to(tensor.device, tensor.dtype, copy=True) for key, tensor in own.items()},
        assign=True,
    )


def _is_in(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def audit(student: nn.Module, teacher: nn.Module) -> FreezeAudit:
    """Which of a student's parameters learn, which are frozen, and which are the teacher's own memory.

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


# ---------------------------------------------------------------------------------------------- files


def save(
    student: UNet2DConditionModel,
    plan: PruningPlan,
    result: BuildResult,
    folder: Path,
    force: bool = False,
    texts: Mapping[str, str] = {},
) -> None:
    """Write a diffusers folder with the plan, the build's result and `texts` in it, whole or not at all."""
    with whole_folder(folder, force) as temporary:
        student.save_pretrained(temporary, safe_serialization=True)
        (temporary / "plan.json").write_text(plan.to_json())
        (temporary / "build.json").write_text(result.to_json())
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
