"""Latents and text states of another data set, as `asdm cache` wrote them in safetensors shards."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from asdm.data.datasets import Encoded, Indexed
from asdm.utils.io import Frozen, Record

MANIFEST = "cache.json"


class Shard(Frozen):
    """A file of examples and their captions in order."""

    file: str
    bytes: int
    captions: tuple[str, ...]


class LatentCache(Record, schema="asdm.latents/1"):
    """`asdm.latents/1`: what is encoded, by which encoders, and how far."""

    data: str
    data_fingerprint: str
    split: str
    size: int
    dtype: str
    encoder_sha256: str
    examples: int  # of the data set
    skipped: int = 0  # unreadable ones
    next_index: int = 0
    shards: tuple[Shard, ...] = ()

    @property
    def finished(self) -> bool:
        return self.next_index >= self.examples


class Latents(Indexed[Encoded]):
    """Encoded examples, read from their shards on access."""

    def __init__(self, folder: Path, cache: LatentCache) -> None:
        self.folder, self.cache = folder, cache
        self.encoder_sha256 = cache.encoder_sha256
        self.captions = tuple(caption for shard in cache.shards for caption in shard.captions)
        self._ends = list(accumulate(len(shard.captions) for shard in cache.shards))
        self._read = lru_cache(maxsize=16)(self._open)

    @property
    def fingerprint(self) -> str:
        return self.cache.sha256()[:16]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def example(self, index: int) -> Encoded:
        number = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        shard = self._read(number)
        mean, std, states = (shard.get_slice(name)[row] for name in ("mean", "std", "states"))
        return Encoded(mean, std, states, self.captions[index])

    def _open(self, number: int) -> Any:
        from safetensors import safe_open

        return safe_open(self.folder / self.cache.shards[number].file, "pt")


def open_data(split: str = "train", size: int = 512, source: str | None = None) -> Latents:
    """The cache in the folder `source`.

    Raises ValueError if it is not a cache, is unfinished, has another size or split, or if a file is missing.
    """
    if not source:
        raise ValueError("the data set latents needs a folder that `asdm cache` wrote: latents:DIR.")
    folder = Path(source)
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{source} is not a cache of latents: it has no {MANIFEST}; `asdm cache` writes one.")
    cache = LatentCache.load(folder / MANIFEST)
    if not cache.finished:
        raise ValueError(
            f"{source} is not finished ({cache.next_index} of {cache.examples} examples); run the same `asdm cache` "
            "command again."
        )
    if cache.size != size:
        raise ValueError(f"{source} holds latents of {cache.size} pixels, not {size}; choose --size {cache.size}.")
    if cache.split != split:
        raise ValueError(f"{source} holds the split {cache.split}, not {split}; choose --split {cache.split}.")
    for shard in cache.shards:
        file = folder / shard.file
        if not file.exists() or file.stat().st_size != shard.bytes:
            raise ValueError(f"{file} is missing or damaged; run `asdm cache` into another folder.")
    return Latents(folder, cache)


def as_tensors(encoded: Sequence[Encoded], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a shard: mean and std (n, 4, h, w), states (n, tokens, c)."""
    names = ("mean", "std", "states")
    return {name: torch.stack([getattr(e, name) for e in encoded]).to("cpu", dtype).contiguous() for name in names}
