"""Checkpoints in LDM's names, made from a diffusers folder: what A1111 and ComfyUI write."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
STEM = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
VAE = {
    "norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k",
    "to_v": "v", "to_out.0": "proj_out", "conv_norm_out": "norm_out",
}  # fmt: skip


def unet_names(names: Any, layers: int = 2) -> dict[str, str]:
    """diffusers' name → LDM's, for a UNet of `layers` a block."""
    attended = {name.rpartition(".attentions.")[0] for name in names if ".attentions." in name}
    return {name: _unet_name(name, layers, attended) for name in names}


def _unet_name(name: str, layers: int, attended: set[str]) -> str:
    for theirs, ours in STEM.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = match.groups()
        place = int(block) * (layers + 1) + int(layer) + (side == "down")
        prefix = f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}"
        return f"{prefix}.{_resnet(rest) if kind == 'resnets' else rest}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
        place = 2 if f"up_blocks.{match[1]}" in attended else 1
        return f"output_blocks.{int(match[1]) * (layers + 1) + layers}.{place}.conv.{match[2]}"
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
    assert match, name
    kind, layer, rest = match.groups()
    return f"middle_block.{2 * int(layer)}.{_resnet(rest)}" if kind == "resnets" else f"middle_block.1.{rest}"


def _resnet(rest: str) -> str:
    stem, _, leaf = rest.rpartition(".")
    return f"{RESNET[stem]}.{leaf}"


def vae_name(name: str, blocks: int) -> str:
    """diffusers' name of a VAE's tensor → LDM's."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    for theirs, ours in VAE.items():
        name = re.sub(rf"\.{re.escape(theirs)}\.", f".{ours}.", name)
    return name


def ldm(folder: Path, blocks: int) -> dict[str, torch.Tensor]:
    """A whole Stable Diffusion 1's folder as the tensors of one file; its VAE has this many blocks."""
    files = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    return of_parts(*(load_file(folder / f"{file}.safetensors") for file in files), blocks=blocks)


def of_parts(
    unet: Mapping[str, torch.Tensor], vae: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor], blocks: int
) -> dict[str, torch.Tensor]:
    """UNet, VAE and text encoder by diffusers' names as the tensors of one file."""
    names = unet_names(unet)
    tensors = {f"model.diffusion_model.{names[name]}": tensor for name, tensor in unet.items()}
    for name, tensor in vae.items():
        own = vae_name(name, blocks)
        if re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", own):
            tensor = tensor[:, :, None, None]  # a convolution over single pixels
        tensors[f"first_stage_model.{own}"] = tensor
    for name, tensor in text.items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return tensors


def write(tensors: Mapping[str, torch.Tensor], path: Path, **metadata: str) -> Path:
    """Save tensors as a checkpoint."""
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt", **metadata})
    return path
