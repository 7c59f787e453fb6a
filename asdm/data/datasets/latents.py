"""Latents and text states of another data set, as `asdm cache` wrote them in safetensors shards."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from asdm.data.datasets import Encoded, Indexed
from asdm.data.datasets._metadata import check_split_name, is_held_out
from asdm.data.settings import Selection
from asdm.records.latents import LatentCache
from asdm.utils import console
from asdm.utils.record import sha256_of, sha256_of_file

MANIFEST = "cache.json"
PARTS = ("mean", "std", "states", "pooled", "time_ids")


class Latents(Indexed[Encoded]):
    """Encoded examples, read from their shards on access; `rows` are the numbers of those that are taken, or all."""

    def __init__(self, folder: Path, cache: LatentCache, rows: Sequence[int] | None = None) -> None:
        self.folder, self.cache = folder, cache
        self.encoder_sha256 = cache.encoder_sha256
        self.files = [folder / shard.file for shard in cache.shards]
        captions = [caption for shard in cache.shards for caption in shard.captions]
        self.rows = rows
        self.captions = tuple(captions if rows is None else (captions[row] for row in rows))
        self._ends = list(accumulate(len(shard.captions) for shard in cache.shards))
        self._whole, self._hashing = set[int](), threading.Lock()
        self._read = lru_cache(maxsize=16)(self._open)

    @property
    def fingerprint(self) -> str:
        own = self.cache.sha256()[:16]
        return own if self.rows is None else sha256_of([own, list(self.rows)])[:16]

    @property
    def shapes(self) -> list[tuple[int, int]] | None:
        """Height and width of each example's latents where they are not all the same."""
        if not any(shard.shape for shard in self.cache.shards):
            return None
        every = [shard.shape or (0, 0) for shard in self.cache.shards for _ in shard.captions]
        return every if self.rows is None else [every[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.captions)

    def example(self, index: int) -> Encoded:
        place = index if self.rows is None else self.rows[index]
        number = bisect.bisect_right(self._ends, place)
        row = place - (self._ends[number - 1] if number else 0)
        try:
            self._check(number)
            shard = self._read(number)
            names = set(shard.keys())
            parts = {name: shard.get_slice(name)[row] for name in PARTS if name in names}
            return Encoded(**parts, caption=self.captions[index])
        except Exception as error:  # whatever safetensors or torch makes of damaged bytes
            file = self.folder / self.cache.shards[number].file
            raise ValueError(
                f"{file} is damaged: {console.first_line(error)}; run `asdm cache` into another folder."
            ) from None

    def _check(self, number: int) -> None:
        """Compare a shard with its hash before its first example is read; those of earlier versions have none."""
        if number in self._whole:
            return
        with self._hashing:
            wanted = self.cache.shards[number].sha256
            if number not in self._whole and wanted not in (None, sha256_of_file(self.files[number])):
                raise ValueError("its bytes are not those that were written")
            self._whole.add(number)

    def _open(self, number: int) -> Any:
        from safetensors import safe_open

        return safe_open(self.folder / self.cache.shards[number].file, "pt")


def open_data(
    split: str = "train", size: int = 512, source: str | None = None, selection: Selection = Selection()
) -> Latents:
    """The cache in the folder `source`, or of it what is held out or not.

    Raises ValueError if it is not a cache, is unfinished, has another size or split, or if a file is missing.
    """
    if other := [name for name in selection.asked() if name != "--hold-out"]:
        raise ValueError(f"latents are encoded already; give {other[0]} to `asdm cache`.")
    if not source:
        raise ValueError("the data set latents needs a folder that `asdm cache` wrote: latents:DIR.")
    folder = Path(source)
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{source} is not a cache of latents: it has no {MANIFEST}; `asdm cache` writes one.")
    cache = LatentCache.load(folder / MANIFEST)
    if not cache.finished:
        of = "" if cache.examples is None else f" of {cache.examples}"
        raise ValueError(
            f"{source} is not finished ({cache.next_index}{of} examples); run the same `asdm cache` command again."
        )
    if cache.size != size:
        raise ValueError(
            f"{source} holds latents of {cache.size} pixels, not {size}; name latents of {size} pixels, or "
            f"--size {cache.size} where the command has it."
        )
    if selection.hold_out:
        check_split_name(split, source)
    elif cache.split != split:
        raise ValueError(f"{source} holds the split {cache.split}, not {split}; choose --split {cache.split}.")
    here = {path.name for path in folder.iterdir()}
    for shard in cache.shards:
        file = folder / shard.file
        if shard.file not in here or file.stat().st_size != shard.bytes:
            raise ValueError(f"{file} is missing or damaged; run `asdm cache` into another folder.")
    if not selection.hold_out:
        return Latents(folder, cache)
    held_out = [is_held_out(name, selection) for name in _names(cache, source)]
    return Latents(folder, cache, [row for row, held in enumerate(held_out) if held == (split == "held_out")])


def _names(cache: LatentCache, source: str) -> list[str]:
    """What the rows are called when some are held out; a picture and its mirror image have their caption in common."""
    captions = [caption for shard in cache.shards for caption in shard.captions]
    if "--flip" not in {option.partition("=")[0] for option in cache.selection}:
        return [f"{number} {caption}" for number, caption in enumerate(captions)]
    if not all(captions):
        raise ValueError(
            f"{source} has mirror images, and pictures without captions, so that --hold-out would train on what it "
            "holds out; use it with --hold-out after `asdm cache` without --flip, or hold out the pictures themselves."
        )
    return captions


def as_tensors(encoded: Sequence[Encoded], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a shard: mean and std (n, 4, h, w), states (n, tokens, c), and SDXL's pooled text and time ids."""
    names = [name for name in PARTS if getattr(encoded[0], name) is not None]
    stacked = {name: torch.stack([getattr(e, name) for e in encoded]).to("cpu") for name in names}
    return {name: (tensor if name == "time_ids" else tensor.to(dtype)).contiguous() for name, tensor in stacked.items()}
