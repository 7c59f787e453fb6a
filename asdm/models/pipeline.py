"""The Stable Diffusion pipeline around a UNet, from prompt to pixels, with real weights where available."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from asdm.models import drawing
from asdm.models.components import components_of
from asdm.models.execution import RANDOM, check_setup, dtype_of
from asdm.models.families import Family, load_family
from asdm.models.loading import default_weights, load_unet, materialise
from asdm.models.settings import GenerateSettings, Setup
from asdm.models.vae import honour_force_upcast
from asdm.utils.progress import Tell


def pipeline(family: Family, unet: nn.Module | None, setup: Setup) -> Any:
    """A diffusers pipeline with `unet` in it; None: everything except a UNet.

    It is loaded from the weights' folder where that holds a whole pipeline. Otherwise text encoder and VAE get random
    weights and the tokenizer works on bytes, which does not change latency. Raises ValueError for a family with two
    text encoders and no weights.
    """
    from diffusers import DiffusionPipeline

    weights = setup.weights or default_weights(family)
    if weights != RANDOM and not (Path(weights).is_dir() and not (Path(weights) / "model_index.json").exists()):
        pipe = DiffusionPipeline.from_pretrained(
            weights, unet=unet, torch_dtype=dtype_of(setup.dtype), use_safetensors=True
        )
    else:
        pipe = _random_pipeline(family, unet, setup)
    pipe.set_progress_bar_config(disable=True)
    honour_force_upcast(pipe.vae)
    return pipe.to(setup.device)


def generate(
    family: Family,
    prompts: Sequence[str],
    settings: GenerateSettings = GenerateSettings(),
    student: str | None = None,
    tell: Tell = lambda *_: None,
) -> list[Any]:
    """One image (PIL) for each prompt, by the family's UNet or by that of the folder `student`.

    The noise depends on the seed and the place in `prompts` alone. Raises ValueError for settings out of bounds and for
    another family's student.
    """
    check_setup(settings)
    drawing.check(family, settings)
    tell("loading", 0, None)
    unet_family = load_family(student) if student else family
    for key in ("in_channels", "cross_attention_dim"):
        if unet_family.unet.get(key) != family.unet.get(key):
            raise ValueError(
                f"{student} is not a student of {family.name}: its {key} is {unet_family.unet.get(key)}, "
                f"not {family.unet.get(key)}; name its own --family."
            )
    weights = student or settings.weights or default_weights(family)
    unet = load_unet(unet_family, weights, settings.device, settings.dtype, settings.seed)
    pipe = pipeline(family, unet, settings)
    return drawing.draw(pipe, family, prompts, settings, student, tell)


def _random_pipeline(family: Family, unet: nn.Module | None, setup: Setup) -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    if len(family.text_encoders) != 1 or family.vae is None:
        raise ValueError(
            f"a whole image of {family.name} needs real weights (--weights): "
            f"its config names {len(family.text_encoders)} text encoders and {'a' if family.vae else 'no'} VAE."
        )
    text = next(part for part in components_of(family, setup.size) if part.name == "text_encoder").module
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(family.vae)
    ready = [materialise(nn.Module.to(part, dtype_of(setup.dtype)), setup.seed, setup.device) for part in (text, vae)]
    return StableDiffusionPipeline(
        vae=ready[1],
        text_encoder=ready[0],
        tokenizer=byte_tokenizer(family.tokens),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=family.prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def byte_tokenizer(tokens: int) -> Any:
    """CLIP's tokenizer without merges: every byte is a token, padded and cut to `tokens`."""
    from transformers import CLIPTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:  # the one constructor that transformers 4 and 5 share
        Path(folder, "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}, allow_nan=False))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=tokens)
