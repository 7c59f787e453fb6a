"""The settings of `asdm cache`, and the options of a data set."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from asdm.models.settings import DTYPES, PictureSetup, SquareSize
from asdm.utils.settings import Option, flag, options

Split = Annotated[str, Option("Split of the data set, if it has several: train, held_out or others.")]
SOURCES = "emoji, folder:DIR, webdataset:SHARDS ({0000..0099} expands; files or URLs), latents:DIR or prompts:FILE"
SMALLEST_SIDE = 8  # pixels: one latent pixel of a Stable Diffusion

Workers = Annotated[
    int | None, Option("Threads that read and decode pictures; default: one a core, from 2 to 8.", at_least=1)
]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which pictures of a data set are taken, and in which shapes."""

    flip: Annotated[bool, Option("Take every picture mirrored, too.")] = False
    buckets: Annotated[
        bool, Option("Keep the shapes of pictures, as near as the UNet takes them, instead of cutting squares.")
    ] = False
    min_side: Annotated[
        int, Option("Leave out pictures whose shorter side has fewer pixels.", at_least=SMALLEST_SIDE)
    ] = SMALLEST_SIDE
    min_aesthetic: Annotated[
        float | None, Option("Leave out pictures to which their metadata give a lower aesthetic score, or none.")
    ] = None
    hold_out: Annotated[
        float, Option("Share of the pictures that --split train leaves to --split held_out.", at_least=0, below=1)
    ] = 0.0

    def asked(self) -> list[str]:
        """The options that are not at their defaults, as typed."""
        known = options(Selection)
        return [
            flag(field.name, known[field.name])
            for field in fields(Selection)
            if getattr(self, field.name) != field.default
        ]

    def fingerprint(self) -> list[str]:
        """What tells this selection from others; nothing at the defaults."""
        return [f"{name}={getattr(self, name.removeprefix('--').replace('-', '_'))}" for name in self.asked()]


def selection_of(settings: Selection) -> Selection:
    """The selection within a command's settings."""
    return Selection(**{field.name: getattr(settings, field.name) for field in fields(Selection)})


@dataclass(frozen=True)
class CacheSettings(PictureSetup, Selection):
    """How `asdm cache` encodes a data set; `batch` and `threads` are not used."""

    split: Split = "train"
    size: SquareSize = None
    dtype: Annotated[str, Option("What is stored: fp16, bf16 or fp32.", choices=DTYPES)] = "fp16"
    workers: Workers = None
    per_shard: Annotated[int, Option("Examples per shard.", at_least=1)] = 512
