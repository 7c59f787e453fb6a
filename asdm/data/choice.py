"""Which data set a command takes where none is named, and what a data set shows: the bundled model's emoji or not."""

from __future__ import annotations

from pathlib import Path

from asdm.data.datasets.latents import MANIFEST
from asdm.data.settings import SOURCES
from asdm.models.families import Family
from asdm.records.latents import LatentCache

EMOJI, MINI = "emoji", "mini"


def data_for(named: str | None, family: Family, what: str) -> str:
    """The data set that was named, or the bundled model's own; raises ValueError where another family's is not named.

    `what` is the command that needs it.
    """
    if named:
        return named
    if family.name == MINI:
        return EMOJI
    raise ValueError(f"{what} of {family.name} needs pictures like those that it draws; name them (--data {SOURCES}).")


def is_emoji(data: str) -> bool:
    """Whether a data set is `emoji`, or latents of it."""
    kind, _, source = data.partition(":")
    manifest = Path(source) / MANIFEST
    if kind == "latents" and manifest.exists():
        return is_emoji(LatentCache.load(manifest).data)
    return kind == EMOJI
