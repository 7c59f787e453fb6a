"""What is checked before a slim run takes its first hour: model, pictures, budget and networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from asdm.cli.slim.settings import SlimSettings
from asdm.data import datasets
from asdm.data.choice import data_for
from asdm.data.datasets._metadata import is_held_out
from asdm.data.datasets.prompts import read_prompts
from asdm.data.drawn import name_of
from asdm.data.identity import FINGERPRINT, identity
from asdm.data.loader import readers, usable
from asdm.data.settings import Selection
from asdm.distill import losses, recipes
from asdm.distill.settings import DistillSettings
from asdm.models import example_inputs, loading
from asdm.models.execution import RANDOM
from asdm.models.families import Family
from asdm.models.sources import resolve
from asdm.unet.blocks import topology
from asdm.unet.inputs import check_caption_only
from asdm.utils.record import sha256_of
from asdm.utils.settings import check_bounds

FEWEST = 16  # pictures


@dataclass(frozen=True)
class Prepared:
    """A slim run that makes sense: its model, its data set and how many pictures that has (None: a long stream).

    `known_by` is what the data are known by in a later call, given what was recorded of them before.
    """

    checkpoint: str
    settings: SlimSettings
    family: Family
    data: str
    pictures: int | None
    known_by: Callable[[Mapping[str, Any] | None], dict[str, Any]]
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
    pictures, known_by = _count(data, side, settings)
    left_out = _without_networks(family, settings, data, say)
    return Prepared(checkpoint, settings, family, data, pictures, known_by, left_out)


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


def _count(
    data: str, side: int, settings: SlimSettings
) -> tuple[int | None, Callable[[Mapping[str, Any] | None], dict[str, Any]]]:
    """How many pictures are trained on, and what they are known by; as many are decoded as measuring and judging need.

    Raises ValueError for fewer than 16, or for none to hold out.
    """
    if data.startswith("prompts:"):
        prompts = read_prompts(data.partition(":")[2])
        selection = Selection(hold_out=settings.hold_out)
        if not any(is_held_out(f"{name_of(i)}.png", selection) for i in range(len(prompts))):
            raise ValueError(f"{data} has no picture to hold out; raise --hold-out.")
        enough = _enough(data, int(len(prompts) * (1 - settings.hold_out)))
        return enough, lambda _: {FINGERPRINT: sha256_of(prompts)[:16]}
    parts: dict[str, Any] = {
        split: datasets.open_source(data, split, side, Selection(hold_out=settings.hold_out))
        for split in ("train", "held_out")
    }
    most = max(FEWEST, settings.prompts, settings.pictures)
    if not _usable(parts["held_out"], 1):
        raise ValueError(f"{data} has no picture to hold out; raise --hold-out.")
    train = parts["train"]
    found, count = _usable(train, most), None if isinstance(train, datasets.Stream) else len(train)
    return count if found == most else _enough(data, found), partial(identity, train, repairable=True)


def _usable(part: Any, most: int) -> int:
    """How many pictures can be read, counted up to `most`."""
    order = part.in_order(0) if isinstance(part, datasets.Stream) else readers(part, range(len(part)))
    return sum(1 for _ in usable(order, most))


def _enough(data: str, count: int) -> int:
    if count < FEWEST:
        raise ValueError(f"{data} has {count} pictures to train on; a student needs at least {FEWEST}.")
    return count


def _without_networks(family: Family, settings: SlimSettings, data: str, say: Callable[[str], None]) -> tuple[str, ...]:
    """What leaves out the loss terms for which nobody named a network and none that suits the data is at hand."""
    training = DistillSettings(data=data, vgg=settings.vgg)
    shape = topology(loading.meta_unet(family))
    options: list[str] = []
    for name in losses.with_network(recipes.terms_of(settings.recipe, shape, settings.steps)):
        setting = losses.network_setting(name)
        try:
            losses.load(name).check_network(training)
        except ValueError as error:
            if setting and getattr(training, setting) is not None:
                raise
            another = f"; --{setting} DIR names another" if setting else ""
            say(f"Training goes without the {name} term: {str(error).partition(';')[0]}{another}.")
            options += ["--weight", f"{name}=0"]
    return tuple(options)
