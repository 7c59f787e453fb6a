"""Pictures that a teacher draws for a file of prompts, once: a folder in the cache, like any folder of pictures."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import torch

from asdm.data.datasets.prompts import read_prompts
from asdm.models import loading
from asdm.models.families import Family
from asdm.models.pipeline import pipeline
from asdm.models.settings import PictureSetup, WholeCheckpoint, checkpoint_of
from asdm.utils import console
from asdm.utils.cache import cache_folder
from asdm.utils.io import make_folder, write_whole
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of

STEPS, AT_ONCE = 30, 8


def drawn(
    name: str, family: Family, checkpoint: WholeCheckpoint, side: int, device: str, tell: Tell = lambda *_: None
) -> str:
    """The data set to open: `name` itself, or for `prompts:FILE` the folder of what the teacher drew.

    A folder is found again by the teacher's weights, the prompts and the size; the i-th picture has the seed i. Where
    drawing was stopped, it resumes.
    """
    kind, _, file = name.partition(":")
    if kind != "prompts":
        return name
    prompts = read_prompts(file)
    setup = PictureSetup(**checkpoint_of(checkpoint), device=device, size=side)
    tell("loading the teacher", 0, None)
    unet = loading.load_teacher(family, setup)
    encoders = {key: value for key, value in checkpoint_of(replace(setup, weights=None)).items() if value}
    key = sha256_of([loading.weights_sha256(unet), family.prediction_type, encoders, prompts, side, STEPS])[:16]
    folder = cache_folder("drawn") / key
    missing = [i for i in range(len(prompts)) if not (folder / f"{name_of(i)}.txt").exists()]
    if missing:
        console.say(f"The teacher draws {len(missing)} pictures for {file}, which are kept in {folder}.")
        make_folder(folder)
        pipe = pipeline(family, unet, setup)
        for start in range(0, len(missing), AT_ONCE):
            tell("the teacher draws", start, None)
            _draw(pipe, family, prompts, missing[start : start + AT_ONCE], side, folder)
    return f"folder:{folder}"


def name_of(number: int) -> str:
    """A drawn picture's, without what tells its kind; whether it is held out depends on it."""
    return f"{number:06d}"


@torch.inference_mode()
def _draw(pipe: Any, family: Family, prompts: list[str], numbers: list[int], side: int, folder: Any) -> None:
    """Draw some prompts; a picture's caption is written last, and so marks it as complete."""
    generators = [torch.Generator().manual_seed(i) for i in numbers]
    options = {"num_inference_steps": STEPS, "guidance_scale": family.guidance_scale, "height": side, "width": side}
    pictures = pipe([prompts[i] for i in numbers], generator=generators, **options).images
    for i, picture in zip(numbers, pictures, strict=True):
        stream = BytesIO()
        picture.save(stream, format="PNG")
        write_whole(folder / f"{name_of(i)}.png", stream.getvalue(), force=True)
        write_whole(folder / f"{name_of(i)}.txt", prompts[i], force=True)
