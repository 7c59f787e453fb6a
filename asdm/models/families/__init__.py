"""Model families: one file each, holding the published configs of a Stable Diffusion's components.

A file defines `FAMILY`. Anything else that has a config is a family too: a diffusers pipeline folder, a folder with
one UNet in it, or a UNet's config file by itself; and so is a checkpoint, whose shapes tell its configs.
"""

from pathlib import Path

from asdm.models.family import Family, from_folder, of_configs
from asdm.utils import registry

__all__ = ["Family", "from_folder", "load_family"]

CHECKPOINTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")  # pickles, to be refused with how to convert them


def load_family(name: str, config: str | None = None) -> Family:
    """A family by name, folder, config file or single-file checkpoint; raises ValueError that lists the choices.

    `config` names the family whose configs a checkpoint has, where its shapes do not tell.
    """
    if Path(name).is_dir():
        return from_folder(Path(name))
    if Path(name).suffix in CHECKPOINTS:
        from asdm.models import recognition

        return recognition.from_file(Path(name), load_family(config) if config else None)
    if Path(name).is_file():
        return of_configs(Path(name), title=_config_title(Path(name)))
    if "/" in name or name.startswith("."):
        raise ValueError(
            f"{name} does not exist; name a diffusers folder, a checkpoint, a config file, or one of "
            f"{', '.join(registry.names(__name__))}."
        )
    try:
        return registry.load(__name__, name).FAMILY
    except ValueError:
        raise ValueError(
            f"unknown family {name!r}; choose from {', '.join(registry.names(__name__))}, or name a diffusers folder."
        ) from None


def _config_title(file: Path) -> str:
    """What a config file is called after: its folder where it is one more config.json, itself otherwise."""
    return file.resolve().parent.name if file.name == "config.json" else file.stem
