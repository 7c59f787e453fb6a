"""What `asdm cache` wrote: latents and text states of another data set, encoded once, in safetensors shards."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, overload

import torch
from pydantic import Field

from asdm.data.datasets import Encoded
from asdm.utils.io import Frozen, Record

MANIFEST = "cache.json"


class Shard(Frozen):
    """A file of examples: its name, and their captions in order."""

    file: str
    bytes: int
    captions: tuple[str, ...]


class LatentCache(Record):
    """`asdm.latents/1`: what was encoded, by which encoders, and how far it got."""

    SCHEMA: ClassVar[str] = "asdm.latents/1"
    schema_: Literal["asdm.latents/1"] = Field("asdm.latents/1", alias="schema")
    data: str
    data_fingerprint: str
    split: str
    size: int
    dtype: str
    encoder_sha256: str
    examples: int  # that there will be
    skipped: int = 0  # that could not be read
    next_index: int = 0
    shards: tuple[Shard, ...] = ()

    @property
    def finished(self) -> bool:
        return self.next_index >= self.examples


class Latents(Sequence[Encoded]):
    """Encoded examples, read from their shards when they are asked for."""

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

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
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

    Raises ValueError where it is none, is not finished, has another size or split, or has lost a file.
    """
    if not source:
        raise ValueError("the data set latents needs to know its folder: latents:DIR, which asdm cache writes.")
    folder = Path(source)
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{source} is no cache of latents: {MANIFEST} is not in it; asdm cache writes one.")
    cache = LatentCache.load(folder / MANIFEST)
    if not cache.finished:
        raise ValueError(
            f"{source} is not finished ({cache.next_index} of {cache.examples} examples); give asdm cache the same "
            "command again."
        )
    if cache.size != size:
        raise ValueError(f"{source} holds pictures of {cache.size} pixels, and not {size}; choose --size {cache.size}.")
    if cache.split != split:
        raise ValueError(f"{source} holds the split {cache.split}, and not {split}; choose --split {cache.split}.")
    for shard in cache.shards:
        file = folder / shard.file
        if not file.exists() or file.stat().st_size != shard.bytes:
            raise ValueError(f"{file} is not as asdm cache left it; cache again into another folder.")
    return Latents(folder, cache)


def as_tensors(encoded: Sequence[Encoded], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A shard's tensors: mean and std (n, 4, h, w), states (n, tokens, c)."""
    names = ("mean", "std", "states")
    return {name: torch.stack([getattr(e, name) for e in encoded]).to("cpu", dtype).contiguous() for name in names}
