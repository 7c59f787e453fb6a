"""A single-file checkpoint as a family: which configs its tensors have, by their shapes."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from asdm.models import checkpoints
from asdm.models.checkpoints import Header
from asdm.models.family import TOKENS, VAE_FACTOR, Family, square
from asdm.models.loading import meta_unet
from asdm.unet import config
from asdm.unet.config import is_count
from asdm.unet.inputs import text_width
from asdm.utils import console, registry

FAMILIES = "asdm.models.families"
PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def from_file(path: Path, base: Family | None = None) -> Family:
    """The family of a single-file checkpoint or of a UNet's file, with the configs of `base`, or of the included family
    whose shapes it has."""
    if not path.exists():
        raise ValueError(f"the checkpoint {path} does not exist.")
    header = checkpoints.read_header(path)
    checkpoints.check_unet_in(header, path)
    family = _exported(header, path, base) or (_with_channels(base, header) if base else _recognised(header, path))
    unet = meta_unet(family)
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    checkpoints.check_shapes(shapes, checkpoints.unet_shapes(path, unet), f"{path} as {family.name}")
    said = header.metadata.get("modelspec.prediction_type", "v" if "v_pred" in header.shapes else "")
    marked = header.metadata.get(checkpoints.ZERO_TERMINAL_SNR) == "true"
    return replace(
        family,
        name=str(path),
        title=path.stem,
        source=path,
        prediction_type=PREDICTIONS.get(said, family.prediction_type),
        zero_terminal_snr=family.zero_terminal_snr or "ztsnr" in header.shapes or marked,
    )


def _exported(header: Header, path: Path, base: Family | None) -> Family | None:
    """The family of a file that `asdm export` wrote, whose metadata has the UNet's config; other parts are its base's.

    The base is the one that was named, otherwise the base model in the metadata.
    """
    text = header.metadata.get("asdm.unet_config")
    if text is None:
        return None
    try:
        unet = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: its asdm.unet_config is not valid JSON.") from None
    config.check(unet, str(path))
    unet["_class_name"] = config.STUDENT if unet.get("edits") else config.SUPPORTED
    if base := base or _base_model(header):
        return replace(base, unet=unet)
    said = {name: header.metadata.get(f"asdm.{name}", str(usual)) for name, usual in _SURROUNDINGS.items()}
    if not all(n.isdecimal() and len(n) < 9 and is_count(int(n)) for n in said.values()):
        raise ValueError(f"{path} is damaged: its asdm.vae_factor and asdm.tokens are not numbers of at least 1.")
    factor, tokens = map(int, said.values())
    own = Family(name=str(path), title=path.stem, size=0, unet=unet, tokens=tokens, own_vae_factor=factor)
    return replace(own, size=square(unet.get("sample_size")) * factor)


_SURROUNDINGS = {"vae_factor": VAE_FACTOR, "tokens": TOKENS}


def _base_model(header: Header) -> Family | None:
    """The base model of an exported file: an included family, the checkpoint if it is still there, or what it was."""
    name, v = header.metadata.get("asdm.base_model", ""), header.metadata.get("modelspec.prediction_type") == "v"
    if name in registry.names(FAMILIES):
        return registry.load(FAMILIES, name).FAMILY
    if os.path.isfile(name) and Path(name).suffix == ".safetensors":
        return replace(from_file(Path(name)), source=None)
    by_architecture = {
        "stable-diffusion-v1": "sd15",
        "stable-diffusion-v2": "sd21" if v else "sd21_base",
        "stable-diffusion-xl-v1-base": "sdxl",
    }
    known = by_architecture.get(header.metadata.get("modelspec.architecture", ""))
    return registry.load(FAMILIES, known).FAMILY if known else None


def _recognised(header: Header, path: Path) -> Family:
    """The included family whose UNet a file's looks like; raises ValueError that says how it differs from all."""
    look = _look(header.shapes)
    fitting = [family for family in _included() if _look_of(family) == look]
    if not fitting:
        raise ValueError(
            f"{path} has the shapes of none of {', '.join(registry.names(FAMILIES))}: its widths are "
            f"{look['widths']}, its text is {look['text']} wide, it has {look['resnets']} ResNets; name its configs "
            "(--config DIR)."
        )
    said = PREDICTIONS.get(header.metadata.get("modelspec.prediction_type", ""))
    chosen = next((family for family in fitting if family.prediction_type == said), fitting[0])
    if len(fitting) > 1 and said is None:
        others = ", ".join(f"--config {family.name}" for family in fitting if family is not chosen)
        console.say_once(f"{path} has the shapes of several families: taken as {chosen.name} (or {others}).")
    return _with_channels(chosen, header)


def _included() -> Iterator[Family]:
    return (registry.load(FAMILIES, name).FAMILY for name in registry.names(FAMILIES))


def _with_channels(family: Family, header: Header) -> Family:
    """The family with a file's number of input and output channels (inpainting has 9, InstructPix2Pix 8)."""
    names = header.shapes
    first = next(names[name] for name in _FIRST if name in names)
    last = next((names[name] for name in _LAST if name in names), first)
    changes = {"in_channels": first[1], "out_channels": last[0]}
    unet = family.unet
    return replace(family, unet=unet | {k: n for k, n in changes.items() if unet.get(k, 4) != n})


_FIRST = ("conv_in.weight", "input_blocks.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight")
_LAST = ("conv_out.weight", "out.2.weight", "model.diffusion_model.out.2.weight")


def _look(shapes: checkpoints.Shapes) -> dict[str, Any]:
    """What tells UNets apart at a glance: widths, text width, and the number of ResNets."""
    names = {name.removeprefix(checkpoints.LDM): shape for name, shape in shapes.items()}
    blocks = ("input_blocks.", "middle_block.", "output_blocks.", "down_blocks.", "mid_block.", "up_blocks.")
    own = {name: shape for name, shape in names.items() if name.startswith(blocks)}
    resnets = [s for name, s in own.items() if name.endswith((".conv1.weight", ".in_layers.2.weight"))]
    text = {s[1] for name, s in own.items() if name.endswith("attn2.to_k.weight")}
    added = next((s[1] for n in ("add_embedding.linear_1.weight", "label_emb.0.0.weight") if (s := names.get(n))), None)
    return {"widths": sorted({s[0] for s in resnets}), "text": sorted(text), "resnets": len(resnets), "added": added}


def _look_of(family: Family) -> dict[str, Any]:
    unet = family.unet
    layers, blocks = unet.get("layers_per_block", 2), len(unet["block_out_channels"])
    resnets = blocks * layers + 2 + blocks * (layers + 1)
    return {
        "widths": sorted(set(unet["block_out_channels"])), "text": [text_width(unet)], "resnets": resnets,
        "added": unet.get("projection_class_embeddings_input_dim"),
    }  # fmt: skip
