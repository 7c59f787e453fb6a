"""What is checked before a slim run takes its first hour: model, pictures, budget and networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asdm.cli.slim.settings import SlimSettings
from asdm.data import datasets
from asdm.data.choice import data_for, is_emoji
from asdm.data.datasets.prompts import read_prompts
from asdm.data.settings import Selection
from asdm.distill import recipes
from asdm.distill.losses.perceptual import load_vgg
from asdm.models import example_inputs
from asdm.models.execution import RANDOM
from asdm.models.families import Family
from asdm.models.sources import resolve
from asdm.unet.inputs import check_caption_only
from asdm.utils.settings import check_bounds

FEWEST = 16  # pictures


@dataclass(frozen=True)
class Prepared:
    """A slim run that makes sense: its model, its data set and how many pictures that has (None: a stream)."""

    checkpoint: str
    settings: SlimSettings
    family: Family
    data: str
    pictures: int | None
    left_out: tuple[str, ...] = ()  # training options for want of a network


def prepare(checkpoint: str, settings: SlimSettings, say: Callable[[str], None] = lambda _: None) -> Prepared:
    """Check a slim run; raises ValueError for what would be nonsense."""
    check_bounds(settings)
    family, weights = resolve(checkpoint, settings, needs="asdm slim")
    if weights == RANDOM:
        say("Warning: the weights are random, so nothing that is measured or trained says anything about a real model.")
    check_caption_only(family.unet, family.name, "asdm slim")
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    if family.unet.get("_class_name") == "StudentUNet":
        raise ValueError(f"{checkpoint} is a student already; name its teacher, with a smaller --budget.")
    check_budget(settings.budget)
    recipes.load(settings.recipe)
    data = data_for(settings.data, family, "asdm slim")
    pictures = _count(data, side, settings)
    return Prepared(checkpoint, settings, family, data, pictures, _without_vgg(settings, data, say))


def check_budget(budget: str) -> None:
    """Raises ValueError for a budget that saves nothing; a time is compared with the profile, when there is one."""
    text = budget.strip().lower()
    if time := re.fullmatch(r"(\d+(\.\d*)?)\s*(ms|s)", text):
        if not float(time[1]):
            raise ValueError(f"--budget must be above 0, got {budget!r}.")
        return
    share = re.fullmatch(r"(x?)(\d*\.?\d+)(%?)", text)
    if share is None or (share[1] and share[3]):
        raise ValueError(f"--budget must be like 0.8, 80%, x1.3, 250ms or 1.2s, got {budget!r}.")
    value = float(share[2]) / (100 if share[3] else 1)
    ratio = (1 / value if value else 0.0) if share[1] else value
    if not 0 < ratio < 1:
        raise ValueError(f"--budget must leave less than the teacher's time and more than nothing, got {budget!r}.")


def _count(data: str, side: int, settings: SlimSettings) -> int | None:
    """How many pictures are trained on; raises ValueError for fewer than 16, or for none to hold out."""
    if data.startswith("prompts:"):
        return _enough(data, int(len(read_prompts(data.partition(":")[2])) * (1 - settings.hold_out)))
    parts: dict[str, Any] = {
        split: datasets.open_source(data, split, side, Selection(hold_out=settings.hold_out))
        for split in ("train", "held_out")
    }
    if isinstance(parts["train"], datasets.Stream):
        return None
    if not len(parts["held_out"]):
        raise ValueError(f"{data} has no picture to hold out; raise --hold-out.")
    return _enough(data, len(parts["train"]))


def _enough(data: str, count: int) -> int:
    if count < FEWEST:
        raise ValueError(f"{data} has {count} pictures to train on; a student needs at least {FEWEST}.")
    return count


def _without_vgg(settings: SlimSettings, data: str, say: Callable[[str], None]) -> tuple[str, ...]:
    """Options that disable the perceptual term when no suitable VGG is available."""
    if settings.recipe not in recipes.WITH_VGG:
        return ()
    if settings.vgg is not None or is_emoji(data):
        load_vgg(settings.vgg or "mini")
        return ()
    try:
        load_vgg("imagenet")
    except ValueError as error:
        say(f"Training goes without the perceptual term: {str(error).partition(';')[0]}; --vgg DIR names another.")
        return ("--weight", "perceptual=0")
    return ()
