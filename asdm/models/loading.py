"""UNets in memory: on the meta device for counting, with random weights for timing, or with real weights."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.measure import machine
from asdm.measure.device import is_gpu, meta_device
from asdm.models import checkpoints, lora as loras
from asdm.models.execution import RANDOM, SHIPPED, dtype_of
from asdm.models.family import Family, from_folder
from asdm.models.settings import Setup
from asdm.utils import console, sizes
from asdm.utils.record import sha256_of, utc_now

_TILE = 1_000_003  # a prime, so that rows of no weight repeat in step with the tile


def meta_unet(family: Family, dtype: str = "fp32") -> nn.Module:
    """The family's UNet on the meta device: shapes without memory."""
    from diffusers import UNet2DConditionModel

    student = family.unet.get("_class_name") == "StudentUNet"
    if student:
        from asdm.models.student import StudentUNet as UNet2DConditionModel
    try:
        with meta_device():
            unet = UNet2DConditionModel.from_config(family.unet).eval()
    except Exception as error:  # whatever a foreign constructor makes of a foreign config
        reason = console.first_line(error)
        raise ValueError(f"diffusers cannot build a UNet of {family.name}'s config: {reason}.") from None
    return nn.Module.to(unet, dtype_of(dtype))


def unet_config_sha256(config: Any) -> str:
    """Hash of a UNet config's values that differ from diffusers' defaults, so that new defaults do not change it."""
    from diffusers import UNet2DConditionModel

    defaults = {name: p.default for name, p in inspect.signature(UNet2DConditionModel.__init__).parameters.items()}
    same = json.loads(json.dumps(defaults, default=lambda _: None))
    public = json.loads(json.dumps({key: value for key, value in dict(config).items() if not key.startswith("_")}))
    return sha256_of({key: value for key, value in public.items() if same.get(key, ...) != value})


def weights_sha256(module: nn.Module) -> str:
    """Hash of a module's tensors by name, dtype, shape and bytes; it distinguishes teachers of the same config."""
    digest = hashlib.sha256()
    tensors = module.state_dict()
    if all(name.startswith("text_model.") for name in tensors):  # CLIPTextModel of transformers 4, unlike that of 5
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_name(family: Family, weights: str) -> str:
    """The name of weights in a record: those in this package are `shipped`, wherever it is installed."""
    ours = family.folder and family.folder.is_relative_to(Path(__file__).parents[1])
    return SHIPPED if ours and weights == str(family.folder) else weights


def run_facts(
    family: Family, weights: str, backend: str, settings: Setup, threads: int, command: str, unet: nn.Module
) -> dict[str, Any]:
    """The fields of a record of a run of whole UNets: what ran when, where, and with which settings."""
    environment = machine.environment(settings.device, threads)
    if is_gpu(settings.device):  # whose convolutions take other kernels for another format
        weight = next(p for p in unet.parameters() if p.dim() == 4)
        environment["memory_format"] = "contiguous" if weight.is_contiguous() else "channels_last"
    return {
        "created_utc": utc_now(), "command": command, "family": family.name, "weights": weights_name(family, weights),
        "backend": backend, "dtype": settings.dtype, "device": settings.device, "threads": threads,
        "seed": settings.seed, "batch": settings.batch, "size": sizes.parse(settings.size or family.size),
        "environment": environment,
    }  # fmt: skip


def load_unet(
    family: Family,
    weights: str = RANDOM,
    device: str = "cpu",
    dtype: str = "fp32",
    seed: int = 0,
    variant: str | None = None,
    lora: Sequence[str] | None = None,
) -> nn.Module:
    """A UNet ready to run: random weights by default, `shipped` ones, those of a folder, a checkpoint or a hub id.

    A folder's config is its own, a checkpoint's is the family's. `lora` names files that are fused, as `FILE[:SCALE]`.
    Raises ValueError where `weights` cannot be loaded.
    """
    if weights == SHIPPED:  # as a record names them
        weights = str(family.folder)
    if weights == RANDOM:
        unet = materialise(meta_unet(family, dtype), seed, device)
    else:
        unet = _pretrained(family, weights, dtype, variant)
    if lora:
        loras.fuse_into_unet(unet, lora)
    return aligned(unet.to(device)).eval()


def load_teacher(family: Family, setup: Setup) -> nn.Module:
    """A teacher's UNet as a setup has it, whose `weights` are resolved (`asdm.models.sources.resolve`)."""
    assert setup.weights is not None, "the caller has resolved them"
    where = (setup.device, setup.dtype, setup.seed)
    return load_unet(family, setup.weights, *where, variant=setup.variant, lora=setup.lora)


def _pretrained(family: Family, weights: str, dtype: str, variant: str | None) -> nn.Module:
    place = checkpoints.place_of(weights, variant)
    if place.is_dir():
        family, folder = from_folder(place), checkpoints.unet_folder(place)
        tensors: dict[str, torch.Tensor] = {}
        for file in checkpoints.weight_files(folder, variant):
            tensors |= checkpoints.read_tensors(file)
    else:
        header = checkpoints.read_header(place)
        checkpoints.check_unet_in(header, place)
        own = checkpoints.read_tensors(place, checkpoints.is_unet_key(header))
        tensors = checkpoints.unet_in(own, meta_unet(family), place)
    unet = meta_unet(family, dtype)
    checkpoints.fill(unet, tensors, dtype_of(dtype), f"a UNet from {weights}")
    return unet


def aligned(module: nn.Module) -> nn.Module:
    """Move weights that a file left at unaligned addresses, where CPU kernels are slower and round differently."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
    return module


def materialise(module: nn.Module, seed: int = 0, device: str = "cpu") -> nn.Module:
    """Give a meta module random weights in one pass over memory.

    Weights are normal with variance 1/fan_in, norms are 1, biases 0: activations keep their scale, so no
    denormals or NaN falsify the times. One random tile is repeated; drawing 860 M numbers would take longer
    than the forward.
    """
    module = module.to_empty(device=device).eval()
    tile = torch.randn(_TILE, generator=torch.Generator().manual_seed(seed)).to(device)
    position = 0
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter.dim() < 2:
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                else:
                    position = _tile(parameter, tile, parameter[0].numel() ** -0.5, position)
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
            else:
                buffer.zero_()
    return module


def _tile(parameter: torch.Tensor, tile: torch.Tensor, scale: float, position: int) -> int:
    flat, written = parameter.view(-1), 0
    while written < flat.numel():
        n = min(tile.numel() - position, flat.numel() - written)
        piece = tile[position : position + n]
        if flat.dtype == tile.dtype:
            torch.mul(piece, scale, out=flat[written : written + n])
        else:
            flat[written : written + n] = piece * scale
        written += n
        position = (position + n) % tile.numel()
    return position
