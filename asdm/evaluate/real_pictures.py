"""The real pictures that generated ones are judged beside: some of a data set, the same ones every time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asdm.data import datasets
from asdm.data.datasets import Encoded, Example
from asdm.data.identity import identity
from asdm.data.loader import readers, usable
from asdm.evaluate.generation import DRAWN_AT_ONCE, StoredImages, decode_latents
from asdm.evaluate.settings import BenchSettings
from asdm.utils import console
from asdm.utils.io import write_whole
from asdm.utils.record import sha256_of

CAPTIONS = "captions.json"


def usable_examples(data: Any, name: str, count: int, option: str = "pictures") -> Iterator[Example | Encoded]:
    """`count` usable examples: at random where the data have numbers, the first ones of a stream.

    Raises ValueError, which names the `option` that asked for so many, where there are fewer.
    """
    stream = isinstance(data, datasets.Stream)
    order = data.in_order(0) if stream else readers(data, np.random.default_rng(0).permutation(len(data)).tolist())
    yielded = 0
    for example in usable(order, count):
        yielded += 1
        yield example
    if yielded < count:
        raise ValueError(f"{option} must be at most the {yielded} usable examples of {name}, got {count}.")


def real_examples(data: Any, name: str, count: int, pipe: Any) -> Iterator[Example]:
    """The pictures of `count` usable examples; latents are decoded by the pipeline's VAE, which made them.

    Raises ValueError where there are fewer.
    """
    for example in usable_examples(data, name, count):
        yield _decoded(example, pipe) if isinstance(example, Encoded) else example


@torch.no_grad()
def _decoded(encoded: Encoded, pipe: Any) -> Example:
    console.say_once("The real pictures are what the VAE makes of the latents.")
    device = next(pipe.vae.parameters()).device
    return Example(decode_latents(pipe.vae, encoded.mean[None].to(device).float())[0].cpu(), encoded.caption)


def store_real(
    data: Any,
    name: str,
    settings: BenchSettings,
    pipe: Any,
    root: Path,
    tell: Callable[[int, float | None], None] = lambda *_: None,
) -> tuple[StoredImages, list[str]]:
    """The real pictures as PNG files in a folder below `root` that later calls find again, and their captions.

    Other pictures under the same name have another folder. `pipe` is for latents.
    """
    facts = [identity(data), settings.split, settings.size, settings.pictures]
    folder = root / f"real-{sha256_of(facts)[:16]}"
    stored = StoredImages(folder, settings.pictures, with_latents=False)
    if not (folder / CAPTIONS).exists():
        captions: list[str] = []
        batch: list[Example] = []
        for example in real_examples(data, name, settings.pictures, pipe):
            batch.append(example)
            captions.append(example.caption)
            if len(batch) == DRAWN_AT_ONCE or len(captions) == settings.pictures:
                stored.write(len(captions) - len(batch), torch.stack([one.image for one in batch]))
                batch = []
                tell(len(captions), None)
        write_whole(folder / CAPTIONS, json.dumps(captions, allow_nan=False), force=True)
    return stored, json.loads((folder / CAPTIONS).read_text(encoding="utf-8"))
