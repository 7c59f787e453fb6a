"""A model family: the configs of one Stable Diffusion, read from a diffusers folder or from a config file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm.models import part_configs
from asdm.unet import config
from asdm.utils import console
from asdm.utils.io import read_json

FLOW = "flow"


@dataclass(frozen=True)
class Family:
    """Configs of one Stable Diffusion; sizes in pixels, prompts in tokens."""

    name: str
    title: str
    size: int
    unet: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...] = ()
    vae: dict[str, Any] | None = None
    tokens: int = 77
    prediction_type: str = "epsilon"
    licence: str = ""  # of the published weights, as model cards name it
    guidance_scale: float = 8.0  # what pictures are drawn with by default
    folder: Path | None = None  # a diffusers folder with its configs, tokenizers and, mostly, weights
    source: Path | None = None  # the folder or file that was named; None for the families here
    zero_terminal_snr: bool = False  # whether its noise schedule ends in pure noise

    @property
    def file(self) -> Path | None:
        """The single-file checkpoint that the family is, if it is one."""
        return self.source if self.source and self.source.suffix == ".safetensors" else None

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1) if self.vae else 8

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
    """The family of a UNet's config, and of those in the pipeline's `folder` where there is one."""
    unet = _unet_config(unet_file)

    def beside(name: str) -> dict[str, Any]:
        if folder is None or not (folder / name).exists():
            return {}
        content = read_json(folder / name)
        if not isinstance(content, dict):
            raise ValueError(f"{folder / name} is not a config: it holds no JSON object.")
        return content

    texts = [text for text in map(beside, ("text_encoder/config.json", "text_encoder_2/config.json")) if text]
    vae, scheduler = beside("vae/config.json") or None, beside("scheduler/scheduler_config.json")
    part_configs.check(texts, vae, scheduler, str(folder))
    built = beside("build.json")  # a student's, which says what its teacher predicts
    factor = 2 ** (len(vae["block_out_channels"]) - 1) if vae else 8
    return Family(
        name=str(folder or unet_file),
        title=title,
        size=_square(unet.get("sample_size")) * factor,
        unet=unet,
        text_encoders=tuple(texts),
        vae=vae,
        tokens=texts[0].get("max_position_embeddings", 77) if texts else 77,
        prediction_type=_prediction(scheduler) or built.get("prediction_type", "epsilon"),
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr") or built.get("zero_terminal_snr")),
        folder=folder,
        source=folder or unet_file,
    )


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
    return FLOW if "FlowMatch" in str(scheduler.get("_class_name")) else scheduler.get("prediction_type")


def _square(sample_size: Any) -> int:
    return int(sample_size[0] if isinstance(sample_size, (list, tuple)) and sample_size else sample_size or 64)
