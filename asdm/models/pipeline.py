"""The Stable Diffusion pipeline around a UNet, from prompt to pixels, with real weights where available."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from asdm.models import checkpoints, drawing, encoders, part_configs, single_file
from asdm.models.components import components_of
from asdm.models.execution import check_setup, dtype_of
from asdm.models.families import Family, load_family
from asdm.models.loading import load_unet, materialise
from asdm.models.settings import GenerateSettings, PictureSetup, Setup
from asdm.models.sources import own_weights, parts_of, resolve
from asdm.models.vae import honour_force_upcast, meta_vae
from asdm.unet.inputs import check_caption_only
from asdm.utils import console
from asdm.utils.progress import Tell
from asdm.utils.record import read_json

CLIP_VOCABULARY = "openai/clip-vit-large-patch14"  # the one that all CLIPs here share, on the hub


def pipeline(family: Family, unet: nn.Module | None, setup: Setup) -> Any:
    """A diffusers pipeline with `unet` in it; None: everything except a UNet.

    Its parts come from the weights' folder or file where that holds a whole pipeline, otherwise from the family's own.
    For a bare family name and for random weights, text encoder and VAE get random weights and the tokenizer works on
    bytes, which does not change latency. Raises ValueError where parts are missing.
    """
    place = parts_of(family, setup.weights or own_weights(family), setup.variant)
    if place is None:
        pipe = _random_pipeline(family, unet, setup)
    else:
        pipe = _of_file(place, family, unet, setup) if place.is_file() else _of_folder(place, unet, setup)
    _set_prediction_type(pipe, family)
    if isinstance(setup, PictureSetup):
        encoders.adjust(pipe, family, setup)
    pipe.set_progress_bar_config(disable=True)
    honour_force_upcast(pipe.vae)
    return pipe.to(setup.device)


def _of_folder(folder: Path, unet: nn.Module | None, setup: Setup) -> Any:
    """diffusers' own loading, with every part in the variant that is there."""
    import diffusers
    import transformers

    libraries: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
    dtype, parts = dtype_of(setup.dtype), {"unet": unet}
    index = read_json(folder / checkpoints.INDEX)
    if not isinstance(index, dict):
        raise ValueError(f"{folder / checkpoints.INDEX} is not a pipeline's index: it is no JSON object.")
    for name, entry in index.items():
        named = isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
        is_there = os.path.isdir(folder / name)  # where the name is too long for a file, too
        if named and name not in ("unet", "safety_checker", "feature_extractor") and not is_there:
            raise ValueError(f"{folder} lacks {console.plain(name)}, which its {checkpoints.INDEX} names.")
        if name == "unet" or not named or not is_there:
            continue
        if (config := folder / name / "config.json").exists():
            part_configs.check_attention(read_json(config), str(config))
        loader: Any = getattr(libraries.get(entry[0]), entry[1], None)
        if not isinstance(loader, type) or not issubclass(loader, nn.Module):
            continue
        wanted = checkpoints.variant_or_plain(folder / name, setup.variant) if name == "vae" else None
        variant = checkpoints.variant_in(folder / name, wanted)
        options = {"torch_dtype": dtype} | ({"variant": variant} if variant else {})
        parts[name] = checkpoints.pretrained(loader, folder / name, f"the {name} of {folder}", **options)
    try:
        return diffusers.DiffusionPipeline.from_pretrained(folder, **parts, torch_dtype=dtype, use_safetensors=True)
    except Exception as error:  # whatever foreign constructors make of foreign configs
        reason = console.first_line(error)
        raise ValueError(f"diffusers cannot load the pipeline in {folder}: {reason}.") from None


def _of_file(path: Path, family: Family, unet: nn.Module | None, setup: Setup) -> Any:
    """The pipeline of a whole single-file checkpoint, whose tokenizers and scheduler are those of its family."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if family.vae is None or not family.text_encoders:
        raise ValueError(
            f"the configs of {path}'s VAE and text encoder are not known; name a pipeline's folder (--config DIR)."
        )
    dtype = dtype_of(setup.dtype)
    vae = meta_vae(family.vae)
    tensors = checkpoints.read_tensors(path, checkpoints.is_vae_key)
    checkpoints.fill(vae, checkpoints.vae_in(tensors, family.vae, path), dtype, f"the VAE of {path}")
    text_tensors = checkpoints.read_tensors(path, lambda name: name.startswith(checkpoints.TEXT_PREFIXES))
    texts = [part.module for part in components_of(family) if part.name.startswith("text_encoder")]
    for number, text in enumerate(texts):
        own = checkpoints.text_encoder_in(text_tensors, text, number, path)
        checkpoints.fill(text, own, dtype, f"a text encoder of {path}")
    tokenizers = [_tokenizer(family, number) for number in range(len(texts))]
    parts = {"vae": vae, "unet": unet, "text_encoder": texts[0], "tokenizer": tokenizers[0]}
    scheduler = scheduler_of(family)
    if len(texts) > 1:
        second = {"text_encoder_2": texts[1], "tokenizer_2": tokenizers[1]}
        return StableDiffusionXLPipeline(**parts, **second, scheduler=scheduler, add_watermarker=False)
    return StableDiffusionPipeline(**parts, scheduler=scheduler, **_NO_CHECKER)


_NO_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _tokenizer(family: Family, number: int) -> Any:
    """A text encoder's tokenizer: from the family's folder, otherwise CLIP's from the hub's cache or the hub."""
    from transformers import CLIPTokenizer

    name = "tokenizer" + (f"_{number + 1}" if number else "")
    if family.folder and (family.folder / name).is_dir():
        try:
            return CLIPTokenizer.from_pretrained(family.folder / name)
        except Exception as error:  # whatever a library makes of a foreign vocabulary
            reason = console.first_line(error)
            raise ValueError(f"cannot load the tokenizer of {family.folder / name}: {reason}.") from None
    padding = {} if family.text_encoders[number].get("hidden_act") == "quick_gelu" else {"pad_token": "!"}
    try:
        return CLIPTokenizer.from_pretrained(CLIP_VOCABULARY, **padding)
    except (OSError, ValueError):
        raise ValueError(
            f"a checkpoint holds no tokenizer, and CLIP's ({CLIP_VOCABULARY}) is not in the hub's cache and cannot be "
            "downloaded; name a pipeline's folder that has one (--config DIR)."
        ) from None


def scheduler_of(family: Family) -> Any:
    """The scheduler in a family's folder, otherwise Stable Diffusion's noise schedule."""
    from diffusers import DDIMScheduler

    file = family.folder / "scheduler" / "scheduler_config.json" if family.folder else None
    if file and file.exists():
        import diffusers

        config = read_json(file)
        try:
            return getattr(diffusers, config.get("_class_name", "DDIMScheduler"), DDIMScheduler).from_config(config)
        except Exception as error:  # whatever a foreign constructor makes of a foreign config
            reason = console.first_line(error)
            raise ValueError(f"diffusers cannot make a scheduler of {file}: {reason}.") from None
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=family.prediction_type,
        rescale_betas_zero_snr=family.zero_terminal_snr,
        timestep_spacing="trailing" if family.zero_terminal_snr else "leading",
    )


def _set_prediction_type(pipe: Any, family: Family) -> None:
    """The family's prediction type, which may be other than the scheduler's file says (`--prediction-type`)."""
    config = pipe.scheduler.config
    wanted: dict[str, Any] = {"prediction_type": family.prediction_type}
    if family.zero_terminal_snr and "rescale_betas_zero_snr" in config and not config["rescale_betas_zero_snr"]:
        wanted |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if any(config.get(key, value) != value for key, value in wanted.items()):
        pipe.scheduler = type(pipe.scheduler).from_config(config, **wanted)


def generate(
    family: str | Family | None,
    prompts: Sequence[str],
    settings: GenerateSettings = GenerateSettings(),
    student: str | None = None,
    tell: Tell = lambda *_: None,
    adapt: Callable[[Any, Family], None] | None = None,
) -> list[Any]:
    """One image (PIL) for each prompt, by the family's UNet or by that of the folder `student`.

    The noise depends on the seed and the place in `prompts` alone. `adapt` may change the pipeline of a family before
    it draws, as a schedule does. Raises ValueError for settings out of bounds and for
    another family's student.
    """
    check_setup(settings)
    for prompt in prompts:
        if not prompt.isascii() and prompt.encode(errors="replace").decode() != prompt:
            raise ValueError(f"the prompt {prompt!r} is not valid UTF-8.")
    family, weights = resolve(family, settings, needs="asdm generate", default="mini")
    check_caption_only(family.unet, family.name, "asdm generate", by_pipeline=True)
    drawing.check(family, settings)
    tell("loading", 0, None)
    unet_family = load_family(student) if student else family
    for key in ("in_channels", "cross_attention_dim"):
        if unet_family.unet.get(key) != family.unet.get(key):
            raise ValueError(
                f"{student} is not a student of {family.name}: its {key} is {unet_family.unet.get(key)}, "
                f"not {family.unet.get(key)}; name its own --family."
            )
    if not settings.prediction_type and unet_family.prediction_type not in ("epsilon", family.prediction_type):
        raise ValueError(
            f"{student} predicts {unet_family.prediction_type}, and {family.name} draws with {family.prediction_type}; "
            "name its own --family, or --prediction-type."
        )
    where = (settings.device, settings.dtype, settings.seed)
    own_lora = None if student else settings.lora
    unet = load_unet(unet_family, student or weights, *where, variant=settings.variant, lora=own_lora)
    if student and settings.lora:
        single_file.fuse_lora(unet, unet_family, settings.lora, family.unet)
    pipe = pipeline(family, unet, settings)
    ready = (lambda pipe: adapt(pipe, family)) if adapt else None
    return drawing.draw(pipe, family, prompts, settings, student, tell, ready)


def _random_pipeline(family: Family, unet: nn.Module | None, setup: Setup) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if len(family.text_encoders) not in (1, 2) or family.vae is None:
        raise ValueError(
            f"a whole image of {family.name} needs real weights (--weights): "
            f"its config names {len(family.text_encoders)} text encoders and {'a' if family.vae else 'no'} VAE."
        )
    texts = [part.module for part in components_of(family, setup.size) if part.name.startswith("text_encoder")]
    vae = meta_vae(family.vae)
    dtype = dtype_of(setup.dtype)
    text, *second, vae = (materialise(nn.Module.to(part, dtype), setup.seed, setup.device) for part in (*texts, vae))
    parts = {"vae": vae, "text_encoder": text, "tokenizer": byte_tokenizer(family.tokens), "unet": unet}
    parts["scheduler"] = scheduler_of(family)
    if second:
        more = {"text_encoder_2": second[0], "tokenizer_2": byte_tokenizer(family.tokens)}
        return StableDiffusionXLPipeline(**parts, **more, add_watermarker=False)
    return StableDiffusionPipeline(**parts, **_NO_CHECKER)


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
