"""Models in memory: on the meta device for counting, with random weights for timing, or with real ones."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.models.families import Family
from asdm.utils.io import read_json, sha256_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM = "random"
SHIPPED = "shipped"


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype by its short name; raises ValueError that lists the choices."""
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; choose from {', '.join(DTYPES)}.")
    return DTYPES[name]


@dataclass(frozen=True)
class Setup:
    """What a measurement runs on; all of it is recorded in what it produces."""

    weights: str | None = None  # None: the family's own where it has some, random ones otherwise
    device: str = "cpu"
    dtype: str = "fp32"
    threads: int | None = None
    seed: int = 0
    batch: int = 1
    size: int | None = None  # pixels


def check_setup(setup: Setup) -> None:
    """Raises ValueError for a batch, thread count, dtype or device that cannot be."""
    dtype_of(setup.dtype)
    check_device(setup.device)
    for name in ("batch", "threads"):
        value = getattr(setup, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} {value} is none; choose 1 or more.")


def check_device(device: str) -> None:
    """Raises ValueError that lists what there is, for a device that this machine does not have."""
    choices, kind = ["cpu"], default_device()
    if kind != "cpu":
        choices += [kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
    if device not in choices:
        raise ValueError(f"no device {device!r} here; choose from {', '.join(choices)}.")


def slow_dtype(device: str, dtype: str) -> str | None:
    """A warning where torch convolves in a dtype that this CPU has no instructions for; None elsewhere."""
    has = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", None)
    if device != "cpu" or dtype not in ("bf16", "fp16") or has is None or has():
        return None
    return (
        f"this CPU has no instructions for {dtype}, without which torch convolves hundreds of times slower than in "
        "fp32; choose --dtype fp32."
    )


def default_device() -> str:
    """The accelerator where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"


# ---------------------------------------------------------------------------------------------- UNet


def meta_unet(family: Family, dtype: str = "fp32") -> nn.Module:
    """The family's UNet without memory behind it: shapes only."""
    from diffusers import UNet2DConditionModel

    student = family.unet.get("_class_name") == "StudentUNet"
    if student:
        from asdm.models.student import StudentUNet as UNet2DConditionModel
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(family.unet).eval()
    return nn.Module.to(unet, dtype_of(dtype))


def unet_config_sha256(config: Any) -> str:
    """Hash of what a UNet's config says beyond diffusers' defaults, so that new defaults do not change it."""
    from diffusers import UNet2DConditionModel

    defaults = {name: p.default for name, p in inspect.signature(UNet2DConditionModel.__init__).parameters.items()}
    same = json.loads(json.dumps(defaults, default=lambda _: None))
    public = json.loads(json.dumps({key: value for key, value in dict(config).items() if not key.startswith("_")}))
    return sha256_of({key: value for key, value in public.items() if same.get(key, ...) != value})


def weights_sha256(module: nn.Module) -> str:
    """Hash of a module's tensors by name, dtype, shape and bytes: tells two teachers of one config apart."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def default_weights(family: Family) -> str:
    """The family's own weights where it is a folder that has some, random ones otherwise."""
    if family.folder and any(family.folder.glob("**/*.safetensors")):
        return str(family.folder)
    return RANDOM


def weights_name(family: Family, weights: str) -> str:
    """What a record calls weights: those that ship are `shipped`, wherever this package is installed."""
    ours = family.folder and family.folder.is_relative_to(Path(__file__).parents[1])
    return SHIPPED if ours and weights == str(family.folder) else weights


def load_unet(
    family: Family, weights: str = RANDOM, device: str = "cpu", dtype: str = "fp32", seed: int = 0
) -> nn.Module:
    """A UNet ready to run: random weights by default, a local diffusers folder or a hub id otherwise.

    Raises ValueError where `weights` cannot be loaded.
    """
    if weights == RANDOM:
        return materialise(meta_unet(family, dtype), seed, device)
    return _pretrained(weights, device, dtype)


def _pretrained(weights: str, device: str, dtype: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    folder = Path(weights)
    local = folder.is_dir()
    if not local and (folder.is_absolute() or weights.startswith(".") or weights.count("/") != 1):
        raise ValueError(
            f"the weights folder {weights} does not exist; name a diffusers folder or a hub id such as owner/name."
        )
    subfolder = "unet" if (not local or (folder / "unet" / "config.json").exists()) else None
    cls: Any = UNet2DConditionModel
    if local and _class_name(folder / (subfolder or "") / "config.json") == "StudentUNet":
        from asdm.models.student import StudentUNet

        cls = StudentUNet
    try:
        unet, info = cls.from_pretrained(
            weights,
            subfolder=subfolder,
            torch_dtype=dtype_of(dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot load a UNet from {weights}: {first.rstrip('.')}.") from None
    for what in ("missing", "unexpected"):
        if names := sorted(info[f"{what}_keys"]):
            raise ValueError(f"cannot load a UNet from {weights}: {len(names)} weights are {what}, such as {names[0]}.")
    return aligned(unet.to(device)).eval()


def _class_name(config: Path) -> str | None:
    if not config.exists():
        raise ValueError(f"{config.parent} is no diffusers folder: neither unet/config.json nor config.json is in it.")
    found = read_json(config)
    if not isinstance(found, dict):
        raise ValueError(f"{config} is no config of a diffusers UNet.")
    return found.get("_class_name")


def aligned(module: nn.Module) -> nn.Module:
    """Move weights that a file left at odd addresses: CPU kernels are slower there, and round otherwise."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
    return module


# ---------------------------------------------------------------------------------------------- random weights

_TILE = 1_000_003  # a prime, so that rows of no weight repeat in step with the tile


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


# ---------------------------------------------------------------------------------------------- inputs


def latent_size(family: Family, size: int | None) -> int:
    """Latent pixels per side for an image of `size` pixels; raises ValueError where the UNet cannot take it."""
    size = family.size if size is None else size
    step = family.size_step
    if size <= 0 or size % step:
        raise ValueError(
            f"size {size} does not fit {family.name}: choose a multiple of {step} pixels, such as {family.size}."
        )
    return size // family.vae_factor


def unet_inputs(
    family: Family,
    batch: int = 1,
    size: int | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    seed: int = 0,
) -> dict[str, Any]:
    """Example arguments of one UNet call: latents (batch, 4, h, w), a timestep, text states (batch, tokens, width)."""
    latent, make = latent_size(family, size), _filler(device, dtype_of(dtype), seed)
    config = family.unet
    width = config.get("cross_attention_dim", 1280)
    width = width[0] if isinstance(width, list | tuple) else width
    inputs: dict[str, Any] = {
        "sample": make(batch, config.get("in_channels", 4), latent, latent),
        "timestep": torch.full((batch,), 500, device=device),
        "encoder_hidden_states": make(batch, family.tokens, width),
        "return_dict": False,
    }
    if config.get("addition_embed_type") == "text_time":
        ids = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - ids
        inputs["added_cond_kwargs"] = {"text_embeds": make(batch, pooled), "time_ids": make(batch, 6)}
    return inputs


def _filler(device: str, dtype: torch.dtype, seed: int) -> Callable[..., torch.Tensor]:
    if device == "meta":
        return lambda *shape: torch.empty(shape, device="meta", dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)
