"""The names of LDM's single-file checkpoints (`model.diffusion_model.input_blocks.1.0.…`) for diffusers' names.

Two layouts of a pruned UNet exist. `comfyui` numbers the blocks that are left, in the order of the data. `sdcpp` gives
every down and up block three places, as in the unpruned Stable Diffusion, so what was removed leaves holes. For an
unpruned UNet both are LDM's own names. The maps invert diffusers' converters (`convert_ldm_unet_checkpoint`,
`convert_ldm_vae_checkpoint`, `convert_open_clip_checkpoint`), from whose tables they are made where one exists.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

from asdm.unet import blocks

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
CLIP_PREFIX, OPEN_CLIP_PREFIX = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
XL_CLIP_PREFIX, XL_OPEN_CLIP_PREFIX = (
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.1.model.",
)
MARK = "asdm.unet."  # before diffusers' names, where a plain UNet would be another model
PLACES = 3  # of a block in `sdcpp`: Stable Diffusion's two layers and a sampler, or three layers

TOP = {
    name.rpartition(".")[0]: ldm.rpartition(".")[0]
    for table in DIFFUSERS_TO_LDM_MAPPING["unet"].values()
    for name, ldm in table.items()
} | {"class_embedding": "label_emb"}
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- UNet


def by_diffusers_names(tensors: Mapping[str, Any], unet: torch.nn.Module) -> dict[str, Any] | None:
    """A file's tensors by diffusers' names, if it has exactly those of `unet` in one of our layouts; None otherwise."""
    if any(name.startswith(MARK) for name in tensors):
        return {name.removeprefix(MARK): tensor for name, tensor in tensors.items()}
    bare = {name.removeprefix(UNET_PREFIX): tensor for name, tensor in tensors.items()}
    for layout in ("comfyui", "sdcpp"):
        try:
            names = unet_names(unet, layout)
        except ValueError:  # a tensor or a layer that LDM has no place for
            continue
        if bare.keys() == set(names.values()):
            return {name: bare[ldm] for name, ldm in names.items()}
    return None


def unet_names(unet: torch.nn.Module, layout: str = "comfyui") -> dict[str, str]:
    """Every tensor of a UNet by diffusers' name → by LDM's, without the prefix; works on the meta device.

    `layout` is comfyui or sdcpp. Raises ValueError for a tensor that LDM has no name for.
    """
    has = {unit.fqn for unit in blocks.iter_units(unet)}
    modules = unit_names(has, layout, blocks.shape_of_blocks(unet)) | TOP
    names = {}
    for key in unet.state_dict():
        module = max((name for name in modules if key.startswith(f"{name}.")), key=len, default=None)
        inner = key.removeprefix(f"{module}.")
        if module is not None and ".resnets." in module:
            part, _, parameter = inner.rpartition(".")
            module = module if part in _RESNET else None
            inner = f"{_RESNET.get(part)}.{parameter}"
        if module is None:
            raise ValueError(f"{key} has no name in LDM's checkpoints; --layout diffusers_unet keeps diffusers' names.")
        names[key] = f"{modules[module]}.{inner}"
    return names


def unit_names(has: Set[str], layout: str, shape: Iterable[tuple[str, int, str | None]] = ()) -> dict[str, str]:
    """Units and samplers by their fqns: diffusers' name → LDM's.

    `shape` has every block's name, layers and sampler in data-flow order; by default it is read off the names.
    """
    return dict(_unit_names(has, layout, shape or _shape_of(has)))


def _shape_of(names: Set[str]) -> Iterator[tuple[str, int, str | None]]:
    parts = [name.split(".") for name in names]
    for side in ("down_blocks", "up_blocks"):
        for i in sorted({int(part[1]) for part in parts if part[0] == side}):
            own = [part for part in parts if part[:2] == [side, str(i)] and len(part) == 4]
            layers = {int(part[3]) for part in own if part[2] in ("resnets", "attentions")}
            sampler = next((".".join(part) for part in own if part[2].endswith("samplers")), None)
            yield f"{side}.{i}", max(layers, default=-1) + 1, sampler
    yield "mid_block", 0, None


def _unit_names(has: Set[str], layout: str, shape: Iterable[tuple[str, int, str | None]]) -> Iterator[tuple[str, str]]:
    place = {"input_blocks": 1, "output_blocks": 0}
    for block, layers, sampler in shape:
        if block == "mid_block":
            yield from _mid_names(has)
            continue
        side = "input_blocks" if block.startswith("down_blocks.") else "output_blocks"
        if layout == "sdcpp":
            place[side] = int(block.partition(".")[2]) * PLACES + (side == "input_blocks")
            _check_room(block, layers, side)
        first = place[side]
        for layer in range(layers):
            yield f"{block}.resnets.{layer}", f"{side}.{first + layer}.0"
            yield f"{block}.attentions.{layer}", f"{side}.{first + layer}.1"
        place[side] += layers
        if sampler and side == "input_blocks":
            at = first + PLACES - 1 if layout == "sdcpp" else place[side]
            yield f"{sampler}.conv", f"{side}.{at}.0.op"
            place[side] += 1
        elif sampler and layout == "sdcpp" and layers < PLACES:  # a place of its own, where the layer is missing
            yield f"{sampler}.conv", f"{side}.{first + PLACES - 1}.{1 if first == 0 else 2}.conv"
        elif sampler:
            after = f"{block}.attentions.{layers - 1}" in has
            yield f"{sampler}.conv", f"{side}.{place[side] - 1}.{2 if after else 1}.conv"


def _mid_names(has: Set[str]) -> Iterator[tuple[str, str]]:
    """A middle block without attention closes up, as LDM's students with one ResNet there are saved."""
    resnets = [f"mid_block.resnets.{i}" for i in (0, 1) if f"mid_block.resnets.{i}" in has]
    if "mid_block.attentions.0" in has:
        yield "mid_block.attentions.0", "middle_block.1"
        yield from ((name, f"middle_block.{2 * int(name[-1])}") for name in resnets)
    else:
        yield from ((name, f"middle_block.{2 * i}") for i, name in enumerate(resnets))


def _check_room(block: str, layers: int, side: str) -> None:
    room = PLACES - (side == "input_blocks")
    if layers > room:
        raise ValueError(f"the layout sdcpp has room for {room} layers in {block}, got {layers}; choose comfyui.")


# ---------------------------------------------------------------------------------------------- VAE and text encoders


def vae_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A VAE's tensors by LDM's names: attention as 1×1 convolutions, the decoder's blocks counted from the image."""
    tensors = modern_vae_names(tensors)
    ups = 1 + max(int(m[1]) for m in (re.match(r"decoder\.up_blocks\.(\d+)\.", name) for name in tensors) if m)
    whole = DIFFUSERS_TO_LDM_MAPPING["vae"]

    def renamed(name: str) -> str:
        if name in whole:
            return str(whole[name])
        name = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{ups - 1 - int(m[1])}.", name)
        name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
        for ours, theirs in _VAE_PARTS.items():
            name = name.replace(ours, theirs)
        return name

    return {
        renamed(name): tensor[:, :, None, None] if _is_vae_attention(name) and tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }


def modern_vae_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A VAE's tensors with the attention's names of today, which Stable Diffusion 1's own folder does not have."""

    def renamed(name: str) -> str:
        place, dot, rest = name.partition(".attentions.0.")
        first, _, end = rest.partition(".")
        return f"{place}{dot}{_FORMER[first]}.{end}" if dot and first in _FORMER else name

    return {renamed(name): tensor for name, tensor in tensors.items()}


_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_PARTS = {
    ".resnets.": ".block.", "samplers.0.": "sample.", "conv_shortcut": "nin_shortcut",
    "mid_block.attentions.0.": "mid.attn_1.", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out",
}  # fmt: skip


def _is_vae_attention(name: str) -> bool:
    return ".attentions." in name and "norm" not in name


def text_tensors(tensors: Mapping[str, torch.Tensor], open_clip: bool) -> dict[str, torch.Tensor]:
    """A CLIP text encoder's tensors as LDM's checkpoints hold them, without the prefix.

    OpenCLIP's have q, k and v in one tensor and a transposed projection.
    """
    named = {_with_text_model(name): tensor for name, tensor in tensors.items() if "position_ids" not in name}
    if not open_clip:
        return {
            name.removeprefix("text_model."): tensor for name, tensor in named.items() if "text_projection" not in name
        }
    table = DIFFUSERS_TO_LDM_MAPPING["openclip"]
    out = {}
    for name, tensor in named.items():
        if name in table["layers"]:
            out[table["layers"][name]] = tensor.T.contiguous() if name == "text_projection.weight" else tensor
            continue
        if m := re.search(r"\.([qkv])_proj\.(weight|bias)$", name):
            if m[1] != "q":
                continue
            parts = [named[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            name, tensor = name[: m.start()] + f".in_proj_{m[2]}", torch.cat(parts)
        for ours, theirs in table["transformer"].items():
            name = name.replace(ours, theirs)
        out[f"transformer.{name}"] = tensor
    return out


def _with_text_model(name: str) -> str:
    """CLIPTextModel of transformers 5 has no `text_model.` before its names, that of 4 has."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def checkpoint(
    unet: Mapping[str, torch.Tensor],
    vae: Mapping[str, torch.Tensor] | None = None,
    text_encoders: Iterable[tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]] = (),
) -> dict[str, torch.Tensor]:
    """A whole checkpoint of a UNet by LDM's names, and a VAE and text encoders (config, tensors) by diffusers'."""
    whole = {UNET_PREFIX + name: tensor for name, tensor in unet.items()}
    whole |= {VAE_PREFIX + name: tensor for name, tensor in vae_tensors(vae).items()} if vae else {}
    encoders = list(text_encoders)
    for i, (config, tensors) in enumerate(encoders):
        open_clip = config.get("hidden_act", "quick_gelu") != "quick_gelu"
        one, of_two = (OPEN_CLIP_PREFIX, XL_OPEN_CLIP_PREFIX) if open_clip else (CLIP_PREFIX, XL_CLIP_PREFIX)
        prefix = one if len(encoders) == 1 else of_two.replace(".1.", f".{i}.").replace(".0.", f".{i}.")
        whole |= {prefix + name: tensor for name, tensor in text_tensors(tensors, open_clip).items()}
    return whole
