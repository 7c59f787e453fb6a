"""A teacher's adapters on its student: LoRA weights renamed, and a ControlNet's residuals matched to the skips left."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import UNet2DConditionModel

from asdm.models import ldm_names
from asdm.plan.legality import ResolvedPlan

# ---------------------------------------------------------------------------------------------- LoRA


class Surgery(Protocol):
    """What was done to a teacher: `surgery.Applied`, or the `BuildResult` in a student's folder."""

    @property
    def name_map(self) -> dict[str, str]: ...
    @property
    def removed(self) -> tuple[str, ...]: ...


def lora_names(done: Surgery) -> dict[str, str]:
    """The teacher's units whose name changes → the student's; removed units → ""."""
    moved = {teacher: student for student, teacher in done.name_map.items() if teacher != student}
    return moved | dict.fromkeys(done.removed, "")


class FittedLora(NamedTuple):
    """LoRA weights by the student's names, and the teacher's modules that the student has no place for."""

    weights: dict[str, Any]
    left_out: tuple[str, ...]


def fit_lora(weights: Mapping[str, Any], done: Surgery, layout: str = "comfyui") -> FittedLora:
    """A teacher's LoRA weights for its student: renamed where layers moved up, dropped where they were removed.

    `weights` may have diffusers' names (`unet.down_blocks.0.…lora_A.weight`), the same as kohya's trainer writes them
    (`lora_unet_down_blocks_0_…`), or LDM's (`lora_unet_input_blocks_4_1_…`, for a student in `layout`); what comes back
    has the same. Keys of text encoders go through. Raises ValueError for names of another model.
    """
    spelled = _spellings(done, layout)
    fitted, left_out = {}, []
    for key, value in weights.items():
        if key.startswith(_TEXT_ENCODERS):
            fitted[key] = value
            continue
        prefix = next(prefix for prefix in _LORA_PREFIXES if key.startswith(prefix))
        name = key.removeprefix(prefix)
        part = next((part for part in _prefixes(name) if part in spelled), None)
        if part is None:
            raise ValueError(f"the LoRA key {key} names no module of the teacher; was it trained for another model?")
        if student := spelled[part]:
            fitted[prefix + student + name[len(part) :]] = value
        else:
            left_out.append(re.split(r"\.(?:lora|alpha$)", name)[0])
    return FittedLora(fitted, tuple(dict.fromkeys(left_out)))


_TEXT_ENCODERS = ("text_encoder", "lora_te", "te.", "te1.", "te2.", "clip_")
_LORA_PREFIXES = ("unet.", "lora_unet_", "model.diffusion_model.", "diffusion_model.", "")


def _spellings(done: Surgery, layout: str) -> dict[str, str]:
    """The teacher's parts in every spelling of LoRA files → the student's in the same; removed ones → ""."""
    student_of = {teacher: student for student, teacher in done.name_map.items()} | dict.fromkeys(done.removed, "")
    ours = ldm_names.unit_names(set(done.name_map), layout)
    theirs = ldm_names.unit_names(set(student_of), layout)
    ldm = {}
    for teacher, student in student_of.items():
        for end in ("", ".conv"):  # a sampler is called after its convolution
            if teacher + end in theirs:
                ldm[theirs[teacher + end]] = ours.get(student + end, "")
    whole = student_of | ldm | {name: name for name in (*ldm_names.TOP, *ldm_names.TOP.values())}
    return whole | {teacher.replace(".", "_"): student.replace(".", "_") for teacher, student in whole.items()}


def _prefixes(name: str) -> Iterator[str]:
    """Every beginning of a name that ends before a `.` or `_`, the longest first."""
    ends = [i for i, letter in enumerate(name) if letter in "._"]
    yield from (name[:i] for i in reversed(ends))


# ---------------------------------------------------------------------------------------------- IP-Adapter


def fit_ip_adapter(weights: Mapping[str, Any], teacher: Any, student: Any, done: Surgery) -> dict[str, Any]:
    """A teacher's IP-Adapter for its student: its keys are positions among the cross-attentions, which move up.

    `weights` has `image_proj` and `ip_adapter`, as `load_ip_adapter` takes them; `teacher` may be on the meta device.
    Raises ValueError for an adapter that was made for another number of cross-attentions.
    """
    places = {name: 2 * i + 1 for i, name in enumerate(_cross_attentions(teacher))}
    adapter = weights["ip_adapter"]
    given = {int(key.partition(".")[0]) for key in adapter}
    if given != set(places.values()):
        raise ValueError(f"the IP-Adapter is for {len(given)} cross-attentions, and the teacher has {len(places)}.")
    own: dict[str, Any] = {}
    for i, name in enumerate(_cross_attentions(student)):
        part = next(part for part in _prefixes(name) if part in done.name_map)
        place = places[done.name_map[part] + name[len(part) :]]
        tensors = {key: value for key, value in adapter.items() if key.startswith(f"{place}.")}
        own |= {f"{2 * i + 1}.{key.partition('.')[2]}": value for key, value in tensors.items()}
    return {**weights, "ip_adapter": own}


def _cross_attentions(unet: Any) -> list[str]:
    return [name for name in unet.attn_processors if not name.endswith("attn1.processor")]


# ---------------------------------------------------------------------------------------------- ControlNet

_ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"


def fit_control(student: torch.nn.Module, teacher_skips: Sequence[str], plan: ResolvedPlan) -> Any:
    """Let a student take the residuals of a ControlNet that was made for its teacher; returns the hook's handle.

    diffusers adds residuals to skips pair by pair and silently stops where one list ends. With this hook, the
    teacher's residuals meet the skips that are left, and any other number of them is a ValueError. The middle block's
    residual is added in its place, or dropped with the deepest pair, whose resolution no longer exists. A `StudentUNet`
    does this by itself; for a plain one, pass `blocks.skips(teacher)` and `resolve(blocks.topology(teacher), edits)`.
    """
    stays = {skip: not _is_gone(skip, plan) for skip in teacher_skips}
    has_deepest = not plan.removes_deepest_pair
    return student.register_forward_pre_hook(partial(_fit_residuals, stays, has_deepest), with_kwargs=True)


def _is_gone(skip: str, plan: ResolvedPlan) -> bool:
    block, _, layer = skip.partition(".layer.")
    if layer:
        return block in plan.removed_blocks or (block, int(layer)) in plan.removed_layers
    return skip in plan.gone


def _fit_residuals(
    skips: dict[str, bool], has_deepest: bool, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    call = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    residuals, mid = call.get(DOWN), call.get(MID)
    if residuals is None or mid is None:
        return None
    left = sum(skips.values())
    if len(residuals) == len(skips):
        residuals = tuple(r for r, stays in zip(residuals, skips.values(), strict=True) if stays)
        mid = mid if has_deepest else mid.new_zeros(())
    elif len(residuals) != left:
        gone = ", ".join(skip for skip, stays in skips.items() if not stays) or "none"
        raise ValueError(
            f"the ControlNet gives {len(residuals)} residuals; this student has {left} skips and its teacher "
            f"{len(skips)} (gone: {gone}), so give {left} or {len(skips)}."
        )
    return (), call | {DOWN: residuals, MID: mid}
