"""Students: the UNet that a plan leaves of its teacher, its presets, and how it is saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ModelMixin,  # noqa: F401  (a pipeline's loader looks for it in the module of a component's class)
    UNet2DConditionModel,
)
from torch import nn

from asdm.files import whole_folder
from asdm.models import aligned, unet_config_sha256
from asdm.plan import (
    AnyEdit,
    Kept,
    PruningPlan,
    RemoveBlock,
    RemoveLayer,
    ReplaceUnit,
    Topology,
    parse_edits,
    resolve,
)
from asdm.replacements import shared_copy
from asdm.results import BuildResult
from asdm.surgery import Applied, apply_plan
from asdm.units import topology


class StudentUNet(UNet2DConditionModel):
    """A diffusers UNet whose config carries the edits that made it; loads wherever `asdm` is installed."""

    def __init__(self, edits: list[dict[str, Any]] | None = None, **teacher_config: Any) -> None:
        super().__init__(**teacher_config)
        self.register_to_config(edits=edits or [])
        apply_plan(self, parse_edits(edits or [], "config.json"))

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


def _without_layers(topology: Topology, blocks: tuple[str, ...]) -> list[AnyEdit]:
    """One layer less in each down block (its last) and in each mirrored up block (its second)."""
    edits: list[AnyEdit] = []
    for block in blocks:
        edits.append(RemoveLayer(block=block, layer=topology.layers(block)[-1]))
        edits.append(RemoveLayer(block=topology.mirror(block), layer=topology.layers(topology.mirror(block))[1]))
    return edits


def a_sdm(topology: Topology) -> list[AnyEdit]:
    """The paper's assembly (§2.2–2.4): a layer less in the shallowest pair, GRI on the attention left there."""
    down = topology.down_blocks[0]
    edits = _without_layers(topology, (down,))
    gone = set(resolve(topology, edits).gone)
    shallow = (down, topology.mirror(down))
    return edits + [
        ReplaceUnit(unit=unit.fqn, with_="gri_attention")
        for unit in topology.units
        if unit.kind == "transformer" and unit.block in shallow and unit.fqn not in gone
    ]


def bk_sdm_base(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Base: one layer less in every block."""
    return _without_layers(topology, topology.down_blocks)


def bk_sdm_small(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Small: Base without the middle block."""
    return [*bk_sdm_base(topology), RemoveBlock(block="mid_block")]


def bk_sdm_tiny(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Tiny: Small without the deepest pair."""
    shallower = _without_layers(topology, topology.down_blocks[:-1])
    return [*shallower, RemoveBlock(block="mid_block"), RemoveBlock(block=topology.down_blocks[-1])]


PRESETS: dict[str, Callable[[Topology], list[AnyEdit]]] = {
    preset.__name__: preset for preset in (a_sdm, bk_sdm_base, bk_sdm_small, bk_sdm_tiny)
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
    Raises ValueError for a teacher that is a student itself: its config could not say what both plans did.
    """
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


# ---------------------------------------------------------------------------------------------- files


def save(
    student: UNet2DConditionModel, plan: PruningPlan, result: BuildResult, folder: Path, force: bool = False
) -> None:
    """Write a diffusers folder with the plan and the build's result in it, whole or not at all."""
    with whole_folder(folder, force) as temporary:
        student.save_pretrained(temporary, safe_serialization=True)
        (temporary / "plan.json").write_text(plan.to_json())
        (temporary / "build.json").write_text(result.to_json())
