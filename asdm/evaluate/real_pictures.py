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
from asdm.data.encoder import Encoder
from asdm.data.loader import readers, usable
from asdm.evaluate.generation import DRAWN_AT_ONCE, StoredImages, decode_latents
from asdm.evaluate.settings import BenchSettings
from asdm.utils import console
from asdm.utils.io import sha256_of, write_whole

CAPTIONS = "captions.json"


def real_examples(data: Any, name: str, count: int, pipe: Any) -> Iterator[Example]:
    """`count` usable pictures: at random where the data have numbers, the first ones of a stream.

    Latents are decoded by the pipeline's VAE. Raises ValueError where there are fewer, or latents of other encoders.
    """
    if (own := getattr(data, "encoder_sha256", None)) and own != Encoder(pipe).sha256():
        raise ValueError(f"{name} was not encoded with this teacher's encoders; run asdm cache with it.")
    stream = isinstance(data, datasets.Stream)
    order = data.in_order(0) if stream else readers(data, np.random.default_rng(0).permutation(len(data)).tolist())
    yielded = 0
    for example in usable(order, count):
        yielded += 1
        yield _decoded(example, pipe) if isinstance(example, Encoded) else example
    if yielded < count:
        raise ValueError(f"pictures must be at most the {yielded} usable examples of {name}, got {count}.")


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
    """The real pictures as PNG files in a folder below `root` that later calls find again, and their captions."""
    facts = [datasets.fingerprint(data), name, settings.split, settings.size, settings.pictures]
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
