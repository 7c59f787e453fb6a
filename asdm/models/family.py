"""A model family: the configs of one Stable Diffusion, read from a diffusers folder or from a config file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm.models import part_configs
from asdm.unet import config
from asdm.utils import console, registry
from asdm.utils.record import read_json

FLOW, EDM = "flow", "edm"
FAMILIES = "asdm.models.families"
VAE_FACTOR, TOKENS = 8, 77  # of the published Stable Diffusions


@dataclass(frozen=True)
class Family:
    """Configs of one Stable Diffusion; sizes in pixels, prompts in tokens."""

    name: str
    title: str
    size: int
    unet: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...] = ()
    vae: dict[str, Any] | None = None
    tokens: int = TOKENS
    prediction_type: str = "epsilon"
    licence: str = ""  # of the published weights, as model cards name it
    guidance_scale: float = 8.0  # what pictures are drawn with by default
    folder: Path | None = None  # a diffusers folder with its configs, tokenizers and, mostly, weights
    source: Path | None = None  # the folder or file that was named; None for the families here
    zero_terminal_snr: bool = False  # whether its noise schedule ends in pure noise
    own_vae_factor: int = VAE_FACTOR  # of a UNet whose VAE is elsewhere

    @property
    def file(self) -> Path | None:
        """The single-file checkpoint that the family is, if it is one."""
        return self.source if self.source and self.source.suffix == ".safetensors" else None

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel."""
        return _factor(self.vae) if self.vae else self.own_vae_factor

    @property
    def size_step(self) -> int:
        """Pixels per pixel of the deepest feature map: sizes are multiples of it, and it is the smallest one."""
        return self.vae_factor * 2 ** (len(self.unet["block_out_channels"]) - 1)

    @property
    def latent(self) -> int:
        return self.size // self.vae_factor


def from_folder(folder: Path) -> Family:
    """The family of a diffusers folder, of a pipeline or of a UNet alone; raises ValueError for any other folder."""
    unet_file = next((f for f in (folder / "unet" / "config.json", folder / "config.json") if f.exists()), None)
    if unet_file is None:
        raise ValueError(f"{folder} is not a diffusers folder: it has neither unet/config.json nor config.json.")
    return of_configs(unet_file, title=folder.resolve().name, folder=folder)


def of_configs(unet_file: Path, title: str, folder: Path | None = None) -> Family:
    """The family of a UNet's config, and of those in the pipeline's `folder` where there is one.

    A student's folder holds a UNet alone; what surrounds it is as its record says (`build.json`), and as its teacher's.
    """
    unet = _unet_config(unet_file)
    texts, vae, scheduler = _parts(folder)
    built = _config(folder, "build.json")
    if not isinstance(built.get("prediction_type", ""), str):
        raise ValueError(f"{folder}/build.json: prediction_type must be a word, got {built['prediction_type']!r}.")
    factor, tokens = (_factor(vae) if vae else VAE_FACTOR), _tokens(texts)
    if folder and not vae and not texts:
        factor, tokens = _recorded(folder, built) or _of_teacher(folder, built) or (factor, tokens)
    return Family(
        name=str(folder or unet_file),
        title=title,
        size=square(unet.get("sample_size")) * factor,
        unet=unet,
        text_encoders=tuple(texts),
        vae=vae,
        tokens=tokens,
        prediction_type=_prediction(scheduler) or built.get("prediction_type", "epsilon"),
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr") or built.get("zero_terminal_snr")),
        folder=folder,
        source=folder or unet_file,
        own_vae_factor=factor,
    )


def _parts(folder: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, Any]]:
    """The checked configs of a pipeline's text encoders, VAE and scheduler, as far as the folder has them."""
    names = ("text_encoder/config.json", "text_encoder_2/config.json")
    texts = [text for text in (_config(folder, name) for name in names) if text]
    vae, scheduler = _config(folder, "vae/config.json") or None, _config(folder, "scheduler/scheduler_config.json")
    part_configs.check(texts, vae, scheduler, str(folder))
    return texts, vae, scheduler


def _config(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None or not (folder / name).exists():
        return {}
    content = read_json(folder / name)
    if not isinstance(content, dict):
        raise ValueError(f"{folder / name} is not a config: it holds no JSON object.")
    return content


def _factor(vae: dict[str, Any]) -> int:
    return 2 ** (len(vae["block_out_channels"]) - 1)


def _tokens(texts: Sequence[dict[str, Any]]) -> int:
    return texts[0].get("max_position_embeddings", TOKENS) if texts else TOKENS


def _recorded(folder: Path, built: dict[str, Any]) -> tuple[int, int] | None:
    """The VAE's factor and the prompt's tokens that a student's record states; None where it states neither."""
    if "vae_factor" not in built and "tokens" not in built:
        return None
    factor, tokens = built.get("vae_factor", VAE_FACTOR), built.get("tokens", TOKENS)
    for name, value in (("vae_factor", factor), ("tokens", tokens)):
        if not config.is_count(value):
            raise ValueError(f"{folder}/build.json: {name} must be a number of at least 1, got {value!r}.")
    return factor, tokens


def _of_teacher(folder: Path, built: dict[str, Any]) -> tuple[int, int] | None:
    """The same of the teacher that the records beside a UNet name, where it can be found."""
    name = built.get("family") or _config(folder, "export.json").get("base_model")
    if not isinstance(name, str):
        return None
    if name in registry.names(FAMILIES):
        family = registry.load(FAMILIES, name).FAMILY
        return family.vae_factor, family.tokens
    texts, vae, _ = _parts(Path(name)) if os.path.isdir(name) else ([], None, {})
    return (_factor(vae), _tokens(texts)) if vae else None


def _unet_config(file: Path) -> dict[str, Any]:
    """The UNet's config in a file, checked, without keys that are not settings of a UNet; these are named once."""
    content = read_json(file)
    config.check(content, str(file))
    if stray := config.stray_keys(content):
        console.say_once(f"{file}: ignoring {', '.join(stray)}, which are not settings of a UNet.")
    if note := config.note(content):
        console.say_once(f"{file}: {note}")
    return {key: value for key, value in content.items() if key not in stray}


def _prediction(scheduler: dict[str, Any]) -> str | None:
    """What a scheduler's config says that the UNet predicts; flow matching has a class of its own for it."""
    kind = str(scheduler.get("_class_name"))
    return FLOW if "FlowMatch" in kind else EDM if kind.startswith("EDM") else scheduler.get("prediction_type")


def square(sample_size: Any) -> int:
    """A config's `sample_size`, in latent pixels, as one number."""
    return int(sample_size[0] if isinstance(sample_size, (list, tuple)) and sample_size else sample_size or 64)
