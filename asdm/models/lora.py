"""LoRA files, fused into a UNet and a text encoder when they are loaded."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from asdm.models import checkpoints
from asdm.utils import console

CONVERTED = "asdm.lora_for"  # in the metadata of a LoRA that was converted for a student
OTHER_KINDS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_w1": "LoHa", "lokr_w1": "LoKr", "oft_": "OFT",
    "diff_b": "full difference", "lora_mid": "LoCon of three matrices (Tucker)",
}  # fmt: skip
ALPHAS = "lora_adapter_metadata"  # where diffusers keeps ranks and alphas
OTHER_ENDS = {".diff": "full difference", ".w_norm": "set of norms' weights"}
_TEXT_NAMES = {
    f".{side}_lora.": f".{name}.lora_linear_layer."
    for side, name in {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}.items()
}


class Lora(NamedTuple):
    """A LoRA's matrices by diffusers' names (`unet.….lora_A.weight`), scaled by their own alpha."""

    name: str
    weights: dict[str, torch.Tensor]
    scale: float


def read(spec: str, unet_config: Mapping[str, Any]) -> Lora:
    """The LoRA that `FILE[:SCALE]` names.

    Raises ValueError for a missing or damaged file, a scale or a matrix that is not finite, or another kind of adapter.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    path, scale = _split(spec)
    raw = checkpoints.read_tensors(path)
    kinds = [kind for mark, kind in OTHER_KINDS.items() if any(mark in name for name in raw)]
    kinds += [kind for end, kind in OTHER_ENDS.items() if any(name.endswith(end) for name in raw)]
    if kind := next(iter(kinds), None):
        raise ValueError(f"{path} is a {kind}, which cannot be fused; choose a LoRA (or LoCon).")
    checkpoints.check_finite(raw, f"the LoRA {path}")
    config: Any = _Attributes(unet_config)
    try:
        named, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(_with_alphas_of_one(raw), unet_config=config)
        if not all(name.startswith(("unet.", "text_encoder")) for name in named):
            named = {f"unet.{name}": tensor for name, tensor in named.items()}
        unet = {name.removeprefix("unet."): tensor for name, tensor in named.items() if name.startswith("unet.")}
        unet = {f"unet.{name}": tensor for name, tensor in convert_unet_state_dict_to_peft(unet).items()}
    except Exception as error:  # diffusers takes names and shapes for granted
        raise ValueError(f"{path} is not a LoRA that diffusers can read: {console.first_line(error)}.") from None
    text = {_text_name(name): tensor for name, tensor in named.items() if not name.startswith("unet.")}
    if not any(name.endswith(".lora_A.weight") for name in (*unet, *text)):
        raise ValueError(f"{path} is not a LoRA: it has no pairs of low-rank matrices.")
    alphas = checkpoints.read_header(path).metadata.get(ALPHAS)
    return Lora(str(path), _with_alphas(unet | text, alphas, path) if alphas else unet | text, scale)


def file_of(spec: str) -> Path:
    """The file that `FILE[:SCALE]` names, as `read`."""
    return _split(spec)[0]


def _split(spec: str) -> tuple[Path, float]:
    file, colon, number = spec.rpartition(":")
    if not colon or Path(spec).exists():
        file, number = spec, "1"
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(f"the scale of a LoRA must be a finite number, as in FILE:0.8, got {spec!r}.")
    path = Path(file)
    checkpoints.check_suffix(path)
    if not path.exists():
        raise ValueError(f"the LoRA {path} does not exist.")
    return path, scale


def _with_alphas_of_one(raw: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """kohya's matrices, each pair multiplied by its alpha / rank, so that nothing remains to be scaled."""
    weights = dict(raw)
    for name, alpha in raw.items():
        stem = name.removesuffix(".alpha")
        down = weights.get(f"{stem}.lora_down.weight")
        if stem != name and down is not None:
            weights[f"{stem}.lora_down.weight"] = down * (float(alpha) / down.shape[0])
            weights[name] = torch.tensor(float(down.shape[0]))
    return weights


def _with_alphas(weights: Mapping[str, torch.Tensor], text: str, path: Path) -> dict[str, torch.Tensor]:
    """Matrices scaled by the alphas that diffusers writes into a file's metadata; PEFT's patterns name modules' ends.

    Raises ValueError for metadata that do not say what they should.
    """
    scaled = dict(weights)
    try:
        facts = json.loads(text)
        for name, down in weights.items():
            part = name.partition(".")[0]
            if not name.endswith(".lora_A.weight") or f"{part}.lora_alpha" not in facts:
                continue
            module = name.removeprefix(f"{part}.").removesuffix(".lora_A.weight")
            patterns = (facts.get(f"{part}.alpha_pattern") or {}).items()
            own = (alpha for end, alpha in patterns if re.match(rf"(.*\.)?({end})$", module))
            rank = math.sqrt(len(down)) if facts.get(f"{part}.use_rslora") else len(down)
            scaled[name] = down * (float(next(own, facts[f"{part}.lora_alpha"])) / rank)
    except (ValueError, TypeError, AttributeError, RecursionError, re.error):
        raise ValueError(f"the {ALPHAS} of {path} is damaged; take it out, or name another LoRA.") from None
    checkpoints.check_finite(scaled, f"the LoRA {path}")
    return scaled


def _text_name(name: str) -> str:
    for theirs, ours in _TEXT_NAMES.items():
        name = name.replace(theirs, ours)
    for theirs, ours in ((".lora_linear_layer.down.", ".lora_A."), (".lora_linear_layer.up.", ".lora_B.")):
        name = name.replace(theirs, ours)
    return name


class _Attributes:
    """A config as an object, which diffusers asks for `layers_per_block`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)
        self.layers_per_block = values.get("layers_per_block", 2)


# ---------------------------------------------------------------------------------------------- fusing


def fuse_into_unet(unet: Any, specs: Sequence[str]) -> None:
    """Add each LoRA's products to the UNet's weights."""
    for spec in specs:
        fuse(unet, read(spec, unet.config), "unet")


def fuse_into_text_encoders(pipeline: Any, specs: Sequence[str], unet_config: Mapping[str, Any]) -> None:
    """Add each LoRA's products to the weights of a pipeline's text encoders."""
    for spec in specs:
        lora = read(spec, unet_config)
        for name in ("text_encoder", "text_encoder_2"):
            if getattr(pipeline, name, None) is not None:
                fuse(getattr(pipeline, name), lora, name)


@torch.no_grad()
def fuse(module: nn.Module, lora: Lora, part: str, some: bool = False) -> list[str]:
    """W += scale · B·A for every pair of `part`; the pairs that the module has no place for come back.

    Raises ValueError for such a pair, or with `some` where not one has a place.
    """
    left, fused = list[str](), 0
    for name, down in lora.weights.items():
        if not name.startswith(f"{part}.") or not name.endswith(".lora_A.weight"):
            continue
        up = lora.weights.get(name.replace(".lora_A.", ".lora_B."))
        target = _weight_of(module, name.removeprefix(f"{part}.").removesuffix(".lora_A.weight"))
        if target is None or up is None or not _fits(up, down, target):
            left.append(name)
            if some:
                continue
            break
        fused += 1
        product = up.flatten(1).float() @ down.flatten(1).float()
        target += (lora.scale * product).view(target.shape).to(target)
        checkpoints.check_finite({name: target}, f"the LoRA {lora.name}", f" once it is added at scale {lora.scale:g}")
    if left and not (some and fused):
        raise ValueError(f"{lora.name} was made for another model: {left[0]} does not fit.")
    return left


def _fits(up: torch.Tensor, down: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether B (out, rank, …) and A (rank, in, …) make a weight of the target's size."""
    if min(up.dim(), down.dim()) < 2 or min(up.numel(), down.numel()) == 0:
        return False
    rank = down.shape[0]
    return up[0].numel() == rank and up.shape[0] * down[0].numel() == target.numel()


def _weight_of(module: nn.Module, name: str) -> torch.Tensor | None:
    """The weight of a submodule, with or without the prefix that versions of transformers disagree on."""
    modules = dict(module.named_modules())
    submodule = modules.get(name) or modules.get(name.removeprefix("text_model."))
    weight = getattr(submodule, "weight", None)
    return weight.data if weight is not None else None
