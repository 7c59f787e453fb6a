"""What a user changes about a pipeline's encoders: another VAE, fewer text layers, LoRA, textual inversions."""

from pathlib import Path
from typing import Any

import torch

from asdm.models import checkpoints, lora, part_configs
from asdm.models.execution import dtype_of
from asdm.models.families import Family
from asdm.models.settings import PictureSetup
from asdm.models.vae import meta_vae
from asdm.utils import console
from asdm.utils.record import read_json


def adjust(pipe: Any, family: Family, setup: PictureSetup) -> None:
    """Apply `--vae`, `--lora` (to the text encoders; a UNet has it already), `--clip-skip` and
    `--textual-inversion` to a pipeline."""
    if setup.vae:
        pipe.register_modules(vae=load_vae(setup.vae, family, setup))
    if setup.lora:
        lora.fuse_into_text_encoders(pipe, setup.lora, family.unet)
    for name in setup.textual_inversion or ():
        add_tokens(pipe, Path(name))
    if setup.clip_skip and setup.clip_skip > 1:
        skip_layers(pipe, setup.clip_skip)


def load_vae(name: str, family: Family, setup: PictureSetup) -> Any:
    """The VAE of a diffusers folder, a hub id or a file, whose config is the family's."""
    from diffusers import AutoencoderKL

    place, dtype = checkpoints.place_of(name, setup.variant), dtype_of(setup.dtype)
    if place.is_dir():
        folder = place / "vae" if (place / "vae" / "config.json").exists() else place
        check_vae(folder)
        variant = checkpoints.variant_in(folder, checkpoints.variant_or_plain(folder, setup.variant))
        what = f"the VAE of {folder}"
        vae = checkpoints.pretrained(AutoencoderKL, folder, what, variant=variant, torch_dtype=dtype)
    else:
        if family.vae is None:
            raise ValueError(f"the config of the VAE in {name} is not known; name its folder.")
        wanted = checkpoints.is_vae_key if checkpoints.is_whole(checkpoints.read_header(place)) else lambda _: True
        vae = meta_vae(family.vae)
        tensors = checkpoints.vae_in(checkpoints.read_tensors(place, wanted), family.vae, place)
        checkpoints.fill(vae, tensors, dtype, f"a VAE from {name}")
    if vae.config.latent_channels != family.unet.get("out_channels", 4):
        raise ValueError(
            f"{name} has {vae.config.latent_channels} latent channels; {family.name}'s UNet has "
            f"{family.unet.get('out_channels', 4)}."
        )
    return vae


def check_vae(folder: Path) -> None:
    """Raises ValueError for a folder whose config is not a VAE's, or has nonsense in it."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} is not the config of a VAE: it holds no JSON object.")
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise ValueError(f"{folder}: class {config['_class_name']} is not supported; choose an AutoencoderKL.")
    part_configs.check([], config, {}, str(folder))


def skip_layers(pipe: Any, last: int) -> None:
    """End the text encoder at its `last` layer from the end: 1 is the whole of it, 2 all but one.

    Raises ValueError for a pipeline of two text encoders, which end before their last layer anyway.
    """
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError("--clip-skip is for Stable Diffusion 1 and 2; SDXL skips a layer by itself.")
    text = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    layers = text.encoder.layers
    if last > len(layers):
        raise ValueError(f"--clip-skip must be between 1 and the text encoder's {len(layers)} layers, got {last}.")
    del layers[len(layers) - (last - 1) :]
    pipe.text_encoder.config.num_hidden_layers = len(layers)


def add_tokens(pipe: Any, path: Path) -> None:
    """Add a textual inversion's embeddings; a prompt uses them by the file's name, or by the token in the file."""
    if not path.exists():
        raise ValueError(f"the textual inversion {path} does not exist.")
    tensors = checkpoints.read_tensors(path)
    checkpoints.check_finite(tensors, f"the textual inversion {path}")
    if not tensors:
        raise ValueError(f"{path} is not a textual inversion: it holds no embeddings.")
    encoders = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
    if not {*encoders} & {*tensors}:
        name, tensor = next(iter(tensors.items()))
        _add(pipe, path, path.stem if name == "emb_params" else name, tensor, *encoders["clip_l"])
        return
    for key, parts in encoders.items():
        if key in tensors:
            _add(pipe, path, path.stem, tensors[key], *parts)


def _add(pipe: Any, path: Path, token: str, tensor: torch.Tensor, encoder: str, tokenizer: str) -> None:
    text = getattr(pipe, encoder, None)
    width = text.get_input_embeddings().weight.shape[1] if text is not None else 0
    if tensor.dim() not in (1, 2) or tensor.shape[-1] != width or not tensor.numel():
        raise ValueError(
            f"{path} is not a textual inversion for this model: its embeddings are {list(tensor.shape)}, and the text "
            f"encoder's are {width} wide."
        )
    try:
        pipe.load_textual_inversion({token: tensor}, token=token, text_encoder=text, tokenizer=getattr(pipe, tokenizer))
    except ValueError as error:  # such as for a token that the vocabulary has already
        raise ValueError(f"cannot add the textual inversion {path}: {console.first_line(error)}.") from None
