"""Weights on disk: what a folder or a file holds, and its tensors by diffusers' names.

Safetensors only. A folder's part may be whole, sharded, or in variants (`fp16`, `non_ema`). A single file holds a whole
Stable Diffusion in LDM's names, as A1111 and ComfyUI write it, or a UNet alone in LDM's or diffusers' names.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from asdm.models import ldm_names
from asdm.utils import console
from asdm.utils.record import brief, read_json

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' names of a part's weights
LDM, LDM_UNET, UNET = "model.diffusion_model.", "input_blocks.0.0.weight", "conv_in.weight"
MOST_HEADER_BYTES = 100 << 20  # the format's own limit
MOST_SIDES, MOST_NUMBERS = 8, 1 << 40  # of a tensor
Shapes = Mapping[str, tuple[int, ...]]


class Header(NamedTuple):
    """A file's tensors by name, and its metadata; nothing else of it is read."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def check_suffix(path: Path) -> None:
    """Raises ValueError for a file that is not a safetensors file, saying how to convert a pickle."""
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read; convert it to safetensors where you trust its "
            "maker (torch.load with weights_only=True, then safetensors.torch.save_file), and name that file."
        )
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a checkpoint; name a .safetensors file, a diffusers folder or a hub id.")


def read_header(path: Path) -> Header:
    """The names and shapes in a safetensors file; raises ValueError for anything else."""
    check_suffix(path)
    _check_file(path)
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            content = json.loads(stream.read(length)) if 2 <= length <= MOST_HEADER_BYTES else None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a safetensors file, or it is damaged.")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f"{path} is damaged: its metadata are not texts by name.")
    return Header({name: _shape(path, name, entry) for name, entry in content.items()}, metadata)


def _check_file(path: Path) -> None:
    """Raises ValueError for a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file.")


def _shape(path: Path, name: str, entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    sides = shape if isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape) else None
    if sides is None or len(sides) > MOST_SIDES or math.prod(sides) > MOST_NUMBERS:
        raise ValueError(f"{path} is damaged: the header states no shape for {name}.")
    return tuple(sides)


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose names are `wanted`; raises ValueError for a file of another kind."""
    from safetensors import SafetensorError, safe_open

    check_suffix(path)
    _check_file(path)
    try:
        with safe_open(path, "pt") as stream:
            names = list(stream.keys())
            return {name: stream.get_tensor(name) for name in names if wanted(name)}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or it is damaged: {console.first_line(error)}.") from None


# ---------------------------------------------------------------------------------------------- where they are


def place_of(weights: str, variant: str | None = None) -> Path:
    """The folder or file on disk that `weights` names; a hub id is downloaded unless it is in the hub's cache."""
    path = Path(weights)
    if path.exists():
        return path
    if path.suffix in (".safetensors", *PICKLES):
        raise ValueError(f"the checkpoint {weights} does not exist.")
    if path.is_absolute() or weights.startswith(".") or weights.count("/") != 1:
        raise ValueError(
            f"the weights folder {weights} does not exist; name a diffusers folder, a .safetensors file or a hub id "
            "such as owner/name."
        )
    return _from_hub(weights, variant)


def _from_hub(name: str, variant: str | None) -> Path:
    """The folder of a hub id in the hub's cache: a whole pipeline, or a UNet alone."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        try:
            return Path(DiffusionPipeline.download(name, variant=variant, use_safetensors=True))
        except (OSError, ValueError):
            return Path(snapshot_download(name, allow_patterns=["*.json", "diffusion_pytorch_model*.safetensors"]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load {name}, which is not a local folder or file, from the hub: {console.first_line(error)}."
        ) from None


INDEX = "model_index.json"


def is_pipeline(place: Path) -> bool:
    """Whether a folder or file holds a text encoder and a VAE beside its UNet."""
    return is_whole(read_header(place)) if place.is_file() else (place / INDEX).exists()


# ---------------------------------------------------------------------------------------------- folders


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files with a part's weights in its folder: one, or a sharded part's.

    Without a `variant`, the plain files are taken, or the only variant where there are none. Raises ValueError that
    says what is there instead.
    """
    choices = _weight_choices(folder)
    chosen = variant or ("" if "" in choices else next(iter(choices)) if len(choices) == 1 else None)
    if chosen in choices:
        return choices[chosen]
    if choices:
        names = ", ".join(sorted(name for name in choices if name))
        plain = ", or leave it out for the plain files" if "" in choices else ""
        raise ValueError(
            f"{folder} has its weights as {names}; choose one (--variant){plain}, got {variant or 'none'}."
        )
    if pickle := next((path for path in sorted(folder.glob("*")) if path.suffix in PICKLES), None):
        check_suffix(pickle)
    raise ValueError(f"{folder} holds no weights: there is no safetensors file in it.")


def variant_in(folder: Path, variant: str | None = None) -> str | None:
    """The variant that `weight_files` takes, as diffusers names it; None for plain files."""
    first = weight_files(folder, variant)[0]
    return next((name or None for name, files in _weight_choices(folder).items() if files[0] == first), None)


def has_weights(folder: Path) -> bool:
    """Whether a part's folder holds safetensors."""
    return bool(_weight_choices(folder))


def variants_in(folder: Path) -> list[str]:
    """The variants of a part's weights, without the plain files."""
    return [name for name in _weight_choices(folder) if name]


def variant_or_plain(folder: Path, variant: str | None) -> str | None:
    """A variant where a part's folder has it; None, the plain files or the only ones, where it has not."""
    return variant if variant in variants_in(folder) else None


def _weight_choices(folder: Path) -> dict[str, list[Path]]:
    """Variant → files, "" for the plain ones."""
    choices: dict[str, list[Path]] = {}
    for stem in STEMS:
        for path in sorted(folder.glob(f"{stem}*")):
            if match := re.fullmatch(rf"{stem}(?:\.([\w-]+))?\.safetensors", path.name):
                if not re.search(r"-\d{5}-of-\d{5}$", path.stem):
                    choices.setdefault(match[1] or "", [path])
            elif match := re.fullmatch(rf"{stem}\.safetensors\.index(?:\.([\w-]+))?\.json", path.name):
                choices.setdefault(match[1] or "", _shards(path))
    return choices


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} is not an index of weights: it has no weight_map.")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for file in files:
        if file.parent != index.parent or file.suffix != ".safetensors":
            raise ValueError(f"{index} names {brief(file.name)}, which is not a safetensors file beside it.")
        if not os.path.exists(file):  # which a name that is too long does not
            raise ValueError(f"{index.parent} lacks {brief(file.name)}, which its index names.")
    return files


def unet_folder(folder: Path) -> Path:
    """Where a diffusers folder has its UNet: in `unet`, or in itself where it holds nothing else."""
    return folder / "unet" if (folder / "unet" / "config.json").exists() else folder


# ---------------------------------------------------------------------------------------------- single files


def is_whole(header: Header) -> bool:
    """Whether a file holds a VAE and text encoders beside its UNet, in LDM's names."""
    return any(name.startswith("first_stage_model.") for name in header.shapes)


def check_unet_in(header: Header, path: Path) -> None:
    """Raises ValueError for a file without a UNet, saying what it looks like."""
    names = header.shapes
    if {UNET, LDM_UNET, f"{LDM}{LDM_UNET}", f"{ldm_names.MARK}{UNET}"} & names.keys():
        return
    looks = next((what for mark, what in _OTHERS if any(mark in name for name in names)), "something else")
    raise ValueError(f"{path} holds no UNet; it looks like {looks}.")


_OTHERS = (
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("lora_", "a LoRA, which goes with a whole checkpoint (--lora)"),
    (".lora.", "a LoRA, which goes with a whole checkpoint (--lora)"),
    ("double_blocks.", "a Flux model, whose denoiser is no UNet"),
    ("joint_blocks.", "a Stable Diffusion 3, whose denoiser is no UNet"),
    ("decoder.conv_in.", "a VAE, which goes with a whole checkpoint (--vae)"),
    ("emb_params", "a textual inversion, which goes with a whole checkpoint (--textual-inversion)"),
    ("text_model.", "a text encoder"),
)


def unet_in(tensors: Mapping[str, Any], unet: Any, path: Path) -> dict[str, Any]:
    """A file's UNet by diffusers' names; `tensors` and `unet`, which has its config, may be on the meta device.

    Raises ValueError for layers that diffusers' converter cannot tell apart.
    """
    if UNET in tensors:
        return dict(tensors)
    if (own := ldm_names.by_diffusers_names(tensors, unet)) is not None:
        return own
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = unet.config
    if not isinstance(config.get("layers_per_block", 2), int):
        raise ValueError(
            f"{path} is in LDM's names, which diffusers cannot read for blocks of unequal depth (layers_per_block "
            f"{list(config['layers_per_block'])}); name it in diffusers' names."
        )
    ldm = {name if name.startswith(LDM) else LDM + name: tensor for name, tensor in tensors.items()}
    try:
        converted = convert_ldm_unet_checkpoint(ldm, dict(config))
    except KeyError as missing:
        raise ValueError(f"{path} lacks {missing.args[0]}, which its config asks for.") from None
    except Exception as error:  # it takes the names and shapes of a UNet for granted
        raise ValueError(f"{path} holds no UNet that diffusers can convert: {console.first_line(error)}.") from None
    if lost := next((name for name, tensor in converted.items() if tensor is None), None):
        raise ValueError(f"{path} lacks {lost}, which its config asks for.")
    return dict(converted)


ZERO_TERMINAL_SNR = "asdm.zero_terminal_snr"  # in the metadata of an exported file
MARKS = ("v_pred", "ztsnr")  # empty tensors by which ComfyUI and others know SDXL's kinds


def is_unet_key(header: Header) -> Callable[[str], bool]:
    """Which of a file's tensors are its UNet's."""
    whole = any(name.startswith(LDM) for name in header.shapes)
    return (lambda name: name.startswith(LDM)) if whole else (lambda name: name not in MARKS)


def unet_shapes(path: Path, unet: Any) -> Shapes:
    """The shapes of a file's UNet by diffusers' names, from its header alone."""
    header = read_header(path)
    wanted = is_unet_key(header)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in header.shapes.items() if wanted(name)}
    return {name: tuple(tensor.shape) for name, tensor in unet_in(tensors, unet, path).items()}


def vae_in(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """A VAE's tensors by diffusers' names, from the whole checkpoint `path` or from a file of its own.

    Raises ValueError where diffusers' converter finds no VAE in it.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if any("down_blocks." in name for name in tensors):
        return ldm_names.modern_vae_names(tensors)
    try:
        return convert_ldm_vae_checkpoint(tensors, dict(config))
    except Exception as error:  # it takes the names and shapes of a VAE for granted
        raise ValueError(f"{path} holds no VAE that diffusers can convert: {console.first_line(error)}.") from None


def is_vae_key(name: str) -> bool:
    """Whether a whole checkpoint's tensor is its VAE's."""
    return name.startswith("first_stage_model.")


TEXT_PREFIXES = ("cond_stage_model.", "conditioner.embedders.")
BESIDE_THE_UNET = ("first_stage_model.", *TEXT_PREFIXES)  # in a whole checkpoint


def text_encoder_in(
    tensors: Mapping[str, torch.Tensor], module: Any, number: int, path: Path
) -> dict[str, torch.Tensor]:
    """The tensors of a whole checkpoint's text encoder by the names of `module`, a transformers CLIP text model.

    Stable Diffusion 1 and SDXL's first have transformers' own names; Stable Diffusion 2 and SDXL's second OpenCLIP's.
    Raises ValueError where diffusers' converter finds none in it.
    """
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    prefixes = (f"conditioner.embedders.{number}.", "cond_stage_model.")
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), "")
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if any(name.startswith(f"{prefix}model.") for name in own):
        try:
            converted = convert_open_clip_checkpoint(module, own, prefix=f"{prefix}model.")
        except Exception as error:  # it takes the names and shapes of a text encoder for granted
            raise ValueError(
                f"{path} holds no text encoder that diffusers can convert: {console.first_line(error)}."
            ) from None
    else:
        inner = f"{prefix}transformer."
        inside = [name for name in own if name.startswith(inner)] or list(own)  # beside them ComfyUI keeps a scale
        converted = {name.removeprefix(inner): own[name] for name in inside}
    names = module.state_dict().keys()
    fitted = {_text_name(name, names): tensor for name, tensor in converted.items()}
    unused = ("position_ids", *(["text_projection", "text_projection.weight"] if not _projects(names) else []))
    return {name: tensor for name, tensor in fitted.items() if not name.endswith(unused)}


def _projects(names: Any) -> bool:
    return any("text_projection" in name for name in names)


def _text_name(name: str, names: Any) -> str:
    """A text encoder's tensor with or without the prefix that versions of transformers disagree on."""
    bare = name.removeprefix("text_model.")
    return bare if bare in names else f"text_model.{bare}"


def fill(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, what: str) -> None:
    """Give a module on the meta device these tensors; raises ValueError unless names and shapes are its own."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_shapes(shapes, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, what)
    check_finite(tensors, what)
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    changed = {name: tensor for name, tensor in cast.items() if tensor is not tensors[name]}
    check_finite(changed, what, f" in {str(dtype).removeprefix('torch.')}, whose range is too small for them")
    module.load_state_dict(cast, strict=True, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            assert name.endswith("position_ids"), f"{name} is in no file"
            owner, _, leaf = name.rpartition(".")
            ids = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            module.get_submodule(owner).register_buffer(leaf, ids, persistent=False)


def pretrained(loader: Any, place: Path | str, what: str, **options: Any) -> Any:
    """A library's own loading of a model from safetensors, in eval mode.

    Raises ValueError in one sentence for what it cannot load, for weights that are missing, which it would draw at
    random, and for NaN or infinite ones.
    """
    try:
        model, info = loader.from_pretrained(place, use_safetensors=True, output_loading_info=True, **options)
    except Exception as error:  # whatever a foreign constructor makes of a foreign config
        raise ValueError(f"cannot load {what}: {console.first_line(error)}.") from None
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise ValueError(f"cannot load {what}: {len(missing)} weights are missing, such as {missing[0]}.")
    check_finite(model.state_dict(), what)
    return model.eval()


def check_finite(tensors: Mapping[str, torch.Tensor], what: str, where: str = "") -> None:
    """Raises ValueError, naming the first tensor, for weights that are NaN or infinite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        wide = tensor if tensor.element_size() > 1 else tensor.bfloat16()  # torch cannot compare numbers of 8 bits
        if not torch.stack(wide.aminmax()).isfinite().all():
            raise ValueError(f"cannot load {what}: {name} holds NaN or infinite numbers{where}.")


def check_shapes(own: Shapes, given: Shapes, what: str) -> None:
    """Raises ValueError, naming the first, for weights that are missing, unexpected or of another shape."""
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    for names, verb in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            raise ValueError(f"cannot load {what}: {len(names)} weights are {verb}, such as {names[0]}.")
    if wrong := sorted(name for name in own if own[name] != given[name]):
        name = wrong[0]
        raise ValueError(f"cannot load {what}: {name} has shape {list(given[name])} instead of {list(own[name])}.")
