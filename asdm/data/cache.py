"""`asdm cache`: VAE latents and text states of a data set, computed once and saved in shards; resumable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from asdm.data import datasets, loader
from asdm.data.datasets import BrokenExample, Encoded
from asdm.data.datasets.latents import MANIFEST, LatentCache, Shard, as_tensors
from asdm.data.encoder import Encoder, chunk_size
from asdm.data.loader import Slot
from asdm.data.settings import CacheSettings
from asdm.models import example_inputs, execution
from asdm.models.pipeline import pipeline
from asdm.models.sources import resolve
from asdm.utils.io import make_folder, write_whole
from asdm.utils.progress import Tell
from asdm.utils.snapshots import clear_leftovers

BATCH = 8


def cache_latents(
    data: str,
    teacher: str | None,
    output: Path,
    settings: CacheSettings = CacheSettings(),
    tell: Tell = lambda *_: None,
) -> LatentCache:
    """Encode a data set into the folder `output`, resuming an earlier call with the same arguments.

    Raises ValueError for a stream, whose examples have no index, or a folder that holds anything else.
    """
    execution.check_setup(settings)
    family, weights = resolve(teacher, settings, needs="asdm cache")
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    examples = datasets.open_source(data, settings.split, side)
    if isinstance(examples, datasets.Stream):
        raise ValueError(f"{data} is a stream, which cannot be cached; unpack its shards and use folder:DIR.")
    tell("loading the encoders", 0, None)
    setup = replace(settings, weights=weights, dtype="fp32")
    encoder = Encoder(pipeline(family, None, setup), chunk_size(side, BATCH))
    manifest = LatentCache(
        data=data,
        data_fingerprint=datasets.fingerprint(examples),
        split=settings.split,
        size=side,
        dtype=settings.dtype,
        encoder_sha256=encoder.sha256(),
        examples=len(examples),
    )
    cache = _begin_or_resume(output, manifest)
    if encoder.on_accelerator:
        encoder.to_dtype(execution.dtype_of(settings.dtype))
    tell = _with_time_left(tell, cache)
    while not cache.finished:
        cache = _add_shard(output, cache, examples, encoder, settings, tell)
    return cache


def _with_time_left(tell: Tell, cache: LatentCache) -> Tell:
    """`tell` with the time left for the whole data set, from the pace of this call."""
    began, first = time.monotonic(), cache.next_index

    def timed(stage: str, done: int, _: float | None) -> None:
        pace = (time.monotonic() - began) / (done - first) if done > first else None
        tell(stage, done, None if pace is None else pace * (cache.examples - done))

    return timed


def _begin_or_resume(folder: Path, manifest: LatentCache) -> LatentCache:
    """The manifest of a new cache, or that of an earlier call with the same data set and encoders."""
    path = folder / MANIFEST
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} exists and is not a cache; name another output.")
        make_folder(folder)
        manifest.save(path)
        return manifest
    saved = LatentCache.load(path)
    for name in ("data", "data_fingerprint", "split", "size", "dtype", "encoder_sha256", "examples"):
        its, ours = getattr(saved, name), getattr(manifest, name)
        if its != ours:
            raise ValueError(f"{folder} holds another cache: its {name} is {its}, not {ours}; name another output.")
    clear_leftovers(folder)
    return saved


def _add_shard(
    folder: Path, cache: LatentCache, data: Sequence[Any], encoder: Encoder, settings: CacheSettings, tell: Tell
) -> LatentCache:
    """Encode the next examples and write them: the shard first, then the manifest that names it.

    Pictures are decoded by several threads while the batch before them is encoded.
    """
    end = min(cache.next_index + settings.per_shard, cache.examples)
    starts, rows = range(cache.next_index, end, BATCH), list[Encoded]()
    with ThreadPoolExecutor(settings.workers or loader.default_workers()) as threads:
        batches = (_readable(data, range(start, min(start + BATCH, end)), threads) for start in starts)
        collated = (encoder.collate([Slot(0, example, None) for example in batch]) for batch in batches)
        with loader.ahead(collated) as next_batch:
            for start in starts:
                rows += encoder.encode(next_batch())
                tell("encoding", start, None)
    shards = cache.shards
    if rows:
        name = f"latents-{len(shards):05d}.safetensors"
        file = write_whole(folder / name, save(as_tensors(rows, execution.dtype_of(cache.dtype))), force=True)
        captions = tuple(row.caption for row in rows)
        shards = (*shards, Shard(file=name, bytes=file.stat().st_size, captions=captions))
    skipped = cache.skipped + (end - cache.next_index) - len(rows)
    cache = cache.model_copy(update={"next_index": end, "shards": shards, "skipped": skipped})
    cache.save(folder / MANIFEST, force=True)
    return cache


def _readable(data: Sequence[Any], numbers: range, threads: ThreadPoolExecutor) -> list[Any]:
    """The examples that can be read, in order."""

    def example(i: int) -> Any:
        try:
            return data[i]
        except BrokenExample:
            return None

    return [found for found in threads.map(example, numbers) if found is not None]
