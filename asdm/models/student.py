"""Students: the UNet that a plan makes of its teacher, and how it is saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from asdm.measure.device import meta_device
from asdm.models.adapters import fit_control
from asdm.models.families import Family
from asdm.models.loaders import Structure, structure_of
from asdm.models.loading import aligned, meta_unet, unet_config_sha256
from asdm.plan.edits import PruningPlan, parse_edits
from asdm.plan.legality import ResolvedPlan, resolve
from asdm.plan.presets import PRESETS
from asdm.records.build import BuildResult
from asdm.unet.blocks import skips, topology
from asdm.unet.replacements import shared_copy
from asdm.unet.surgery import Applied, MakeUnit, apply_plan, resolved_on
from asdm.utils.io import whole_folder


class StudentUNet(UNet2DConditionModel):
    """A diffusers UNet whose config carries its edits; `edits` may be the resolved plan that they come from.

    It loads wherever `asdm` is installed.
    """

    __module__ = "asdm"  # what a pipeline's folder says, so that `import asdm` is enough for diffusers to find it

    def __init__(self, edits: list[dict[str, Any]] | ResolvedPlan | None = None, **teacher_config: Any) -> None:
        super().__init__(**teacher_config)
        if isinstance(edits, ResolvedPlan):
            plan = edits
            self.register_to_config(edits=[edit.model_dump(mode="json", by_alias=True) for edit in plan.edits])
        else:
            plan = resolved_on(self, parse_edits(edits or [], "config.json"))
            self.register_to_config(edits=edits or [])
        teacher_skips = skips(self)
        self.applied = apply_plan(self, plan)
        fit_control(self, teacher_skips, plan)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own; raises ValueError if the config does not describe the tensors, as after folding."""
        with meta_device():
            loads = _shapes(type(self).from_config(_public(self.config)).state_dict())
        has = _shapes(self.state_dict())
        if wrong := sorted(name for name in has.keys() | loads.keys() if has.get(name) != loads.get(name)):
            raise ValueError(
                f"this student's tensors are not those of its edits ({wrong[0]} differs), so it could not be loaded "
                "again; save the student as it was built, and fold it or load LoRA after loading it."
            )
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """diffusers' own, with weights at aligned addresses, so that a reloaded student's outputs are bit-identical."""
        loaded = super().from_pretrained(*args, **kwargs)
        aligned(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # diffusers reads a config's legal keys off __init__'s signature; ours are the parent's and one more.
        keys = UNet2DConditionModel._get_init_keys(input_class)
        return keys | UNet2DConditionModel._get_init_keys(UNet2DConditionModel) if "edits" in keys else keys


def read_plan(source: str, teacher: nn.Module, family: str) -> ResolvedPlan:
    """A plan from a preset's name or a file, resolved against its teacher.

    Raises ValueError for another source, for a plan made for another teacher, and for an edit that does not fit.
    """
    shape, sha256 = topology(teacher), unet_config_sha256(teacher.config)
    if source in PRESETS:
        try:
            edits = tuple(PRESETS[source](shape))
            return resolve(shape, PruningPlan(name=source, family=family, teacher_config_sha256=sha256, edits=edits))
        except (ValueError, IndexError) as error:
            raise ValueError(f"the preset {source} does not fit {family}: {error}") from None
    if not Path(source).exists():
        raise ValueError(f"{source!r} is neither a plan file nor a preset; choose from {', '.join(PRESETS)}.")
    plan = PruningPlan.load(source)
    if plan.teacher_config_sha256 not in (None, sha256):
        raise ValueError(
            f"{source} was made for another teacher ({plan.family}, config {str(plan.teacher_config_sha256)[:12]}) "
            f"than {family} (config {sha256[:12]}); plan again on a profile of {family}."
        )
    try:
        return resolve(shape, plan)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def build(
    teacher: nn.Module, plan: PruningPlan | ResolvedPlan, make: MakeUnit | None = None
) -> tuple[UNet2DConditionModel, Applied]:
    """The student of `teacher` under `plan`; it shares the teacher's tensors, and the teacher is not changed.

    `make` makes its replaced units, such as a library of them.

    A plan that only removes layers and blocks gives a plain `UNet2DConditionModel`, which diffusers loads without
    asdm. Raises ValueError for a teacher that is itself a student, since a config holds only one plan's edits, and for
    a plan with grafts, which `assemble` builds.
    """
    resolved = resolved_on(teacher, plan)
    if resolved.grafted:
        raise ValueError(
            f"the plan {resolved.plan.name} takes {' and '.join(resolved.grafted)} from a stage-1 student; "
            "asdm build --stage1 DIR builds it."
        )
    return operate(teacher, resolved, make)


def operate(
    teacher: nn.Module, plan: ResolvedPlan, make: MakeUnit | None = None
) -> tuple[UNet2DConditionModel, Applied]:
    """`build` for any plan: grafted blocks are the teacher's own, as the plan leaves them."""
    if isinstance(teacher, StudentUNet):
        raise ValueError(
            "the teacher is a student with edits of its own; build from its teacher, with both plans' edits."
        )
    operated = shared_copy(teacher)
    applied = apply_plan(operated, plan, make)
    weights = operated.state_dict()
    with meta_device():
        student = _plain(teacher, plan, weights) or StudentUNet.from_config(_public(teacher.config) | {"edits": plan})
    student.load_state_dict(weights, strict=True, assign=True)
    return student.eval(), applied


def structure(family: Family) -> Structure:
    """What other programs can see of the UNet of a family or of a student's folder."""
    config = {key: value for key, value in family.unet.items() if key not in ("edits", "_class_name")}
    teacher = meta_unet(replace(family, unet=config))
    return structure_of(config, resolved_on(teacher, parse_edits(family.unet.get("edits") or [], family.name)))


def _plain(teacher: nn.Module, plan: ResolvedPlan, weights: dict[str, torch.Tensor]) -> UNet2DConditionModel | None:
    """A diffusers UNet with exactly these weights' names and shapes, or None if there is none."""
    if plan.removed_units or plan.replaced:
        return None
    student = UNet2DConditionModel.from_config(_pruned_config(_public(teacher.config), plan))
    return student if _shapes(student.state_dict()) == _shapes(weights) else None


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def _public(config: Any) -> dict[str, Any]:
    """A config without diffusers' private keys, one of which makes it ignore values that were once defaults."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _pruned_config(config: dict[str, Any], plan: ResolvedPlan) -> dict[str, Any]:
    """diffusers' config of a UNet after whole layers and blocks were removed."""
    teacher = plan.topology
    kept = [[(block, n) not in plan.removed_layers for n in teacher.layers(block)] for block in teacher.down_blocks]
    layers = list(map(sum, kept))
    if "mid_block" in plan.removed_blocks:
        config["mid_block_type"] = None
    if plan.removes_deepest_pair:
        layers = layers[:-1]
        for keys, left in ((_PER_DOWN_BLOCK, slice(None, -1)), (_PER_UP_BLOCK, slice(1, None))):
            for key in keys:
                if isinstance(config.get(key), list | tuple):
                    config[key] = list(config[key])[left]
    config["layers_per_block"] = layers[0] if len(set(layers)) == 1 else layers
    return config


_PER_DOWN_BLOCK = (
    "block_out_channels", "down_block_types", "attention_head_dim", "num_attention_heads", "cross_attention_dim",
    "only_cross_attention", "transformer_layers_per_block",
)  # fmt: skip
_PER_UP_BLOCK = ("up_block_types", "reverse_transformer_layers_per_block")


def save(
    student: UNet2DConditionModel,
    plan: PruningPlan,
    result: BuildResult,
    folder: Path,
    force: bool = False,
    texts: Mapping[str, str] = {},
) -> None:
    """Write a diffusers folder with the plan, the build's result and `texts` in it, whole or not at all."""
    with whole_folder(folder, force, sum(tensor.nbytes for tensor in student.state_dict().values())) as temporary:
        student.save_pretrained(temporary, safe_serialization=True)
        (temporary / "plan.json").write_text(plan.to_json())
        (temporary / "build.json").write_text(result.to_json())
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
