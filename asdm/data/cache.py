"""`asdm cache`: VAE latents and text states of a data set, computed once and saved in shards; resumable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import save

from asdm.data import datasets, loader
from asdm.data.datasets import BrokenExample, Encoded
from asdm.data.datasets.latents import MANIFEST, as_tensors
from asdm.data.drawn import drawn
from asdm.data.encoder import Encoder, chunk_size
from asdm.data.identity import FINGERPRINT, SAMPLE, identity
from asdm.data.loader import Reader, Slot
from asdm.data.settings import CacheSettings, selection_of
from asdm.models import example_inputs, execution
from asdm.models.pipeline import pipeline
from asdm.models.sources import resolve
from asdm.records.latents import LatentCache, Shard
from asdm.utils import locks
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

    Raises ValueError for a folder that holds anything else, and where no example can be used.
    """
    execution.check_setup(settings)
    family, weights = resolve(teacher, settings, needs="asdm cache")
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    if data.startswith("latents"):
        raise ValueError(
            f"{data} is a cache already; name pictures: emoji, folder:DIR, webdataset:SHARDS or prompts:FILE."
        )
    selection = selection_of(settings)
    opened = drawn(data, family, replace(settings, weights=weights), side, settings.device, tell)
    examples = datasets.open_source(opened, settings.split, side, selection)
    tell("loading the encoders", 0, None)
    setup = replace(settings, weights=weights, dtype="fp32")
    encoder = Encoder(pipeline(family, None, setup), chunk_size(side, BATCH))
    stream = isinstance(examples, datasets.Stream)
    left_out = getattr(examples, "left_out", datasets.LeftOut())
    manifest = LatentCache(
        data=data,
        **identity(examples, _recorded(output)),
        split=settings.split,
        size=side,
        dtype=settings.dtype,
        encoder_sha256=encoder.sha256(),
        examples=None if stream else len(examples),
        selection=tuple(selection.fingerprint()),
        **_skipped(left_out.place),
    )
    cache = _begin_or_resume(output, manifest)
    if encoder.on_accelerator:
        encoder.to_dtype(execution.dtype_of(settings.dtype))
    tell = _with_time_left(tell, cache)
    first = cache.next_index
    readers = examples.in_order(first) if stream else loader.readers(examples, range(first, len(examples)))
    with locks.alone_in(output):
        clear_leftovers(output)
        while not cache.finished:
            cache = _add_shard(output, cache, readers, encoder, settings, tell)
    if not cache.shards:
        why = " ".join(datasets.lines_of(cache.why_skipped, cache.first_skipped))
        raise ValueError(f"{data} has no example that can be used. {why}".strip())
    return cache


def _with_time_left(tell: Tell, cache: LatentCache) -> Tell:
    """`tell` with the time left for the whole data set, from the pace of this call."""
    began, first = time.monotonic(), cache.next_index

    def timed(stage: str, done: int, _: float | None) -> None:
        pace = (time.monotonic() - began) / (done - first) if done > first else None
        left = None if pace is None or cache.examples is None else pace * (cache.examples - done)
        tell(stage, done, left)

    return timed


def _recorded(folder: Path) -> dict[str, Any]:
    """What the manifest in a folder knows its data by; nothing where there is none."""
    if not (folder / MANIFEST).exists():
        return {}
    saved = LatentCache.load(folder / MANIFEST)
    return {name: value for name in (FINGERPRINT, SAMPLE) if (value := getattr(saved, name)) is not None}


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
    for name in ("split", "size", "dtype", "encoder_sha256", "selection", FINGERPRINT, SAMPLE, "examples"):
        its, ours = getattr(saved, name), getattr(manifest, name)
        if its == ours or (name == "examples" and ours is None):  # a stream's are known at its end
            continue
        if name in (FINGERPRINT, SAMPLE) and saved.data == manifest.data:
            raise ValueError(
                f"{folder} was encoded from other data: the pictures or captions of {manifest.data} have changed "
                "since; restore them, or name another output."
            )
        raise ValueError(f"{folder} holds another cache: its {name} is {its}, not {ours}; name another output.")
    return saved


def _add_shard(
    folder: Path,
    cache: LatentCache,
    readers: Iterator[Reader],
    encoder: Encoder,
    settings: CacheSettings,
    tell: Tell,
) -> LatentCache:
    """Encode the next examples and write them, a shard for each shape, then the manifest that names them.

    Pictures are decoded by several threads while the batch before them is encoded.
    """
    wanted = list(islice(readers, settings.per_shard))
    end = cache.next_index + len(wanted)
    starts, rows = range(0, len(wanted), BATCH), list[Encoded]()
    counted: dict[str, Any] = {"skipped": cache.why_skipped, "names": cache.first_skipped}
    with ThreadPoolExecutor(settings.workers or loader.default_workers()) as threads:
        batches = (threads.map(_readable, wanted[start : start + BATCH]) for start in starts)
        collated = ([encoder.collate(slots) for slots in _by_shape(batch, counted)] for batch in batches)
        with loader.ahead(collated) as next_batch:
            for start in starts:
                for batch in next_batch():
                    rows += encoder.encode(batch)
                tell("encoding", cache.next_index + start, None)
    shards, shapes = cache.shards, dict.fromkeys(tuple(row.mean.shape[-2:]) for row in rows)
    for shape in shapes:
        own = [row for row in rows if tuple(row.mean.shape[-2:]) == shape]
        name = f"latents-{len(shards):05d}.safetensors"
        content = save(as_tensors(own, execution.dtype_of(cache.dtype)))
        write_whole(folder / name, content, force=True)
        captions = tuple(row.caption for row in own)
        facts: dict[str, Any] = {"shape": shape} if settings.buckets else {}
        facts |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        shards = (*shards, Shard(file=name, captions=captions, **facts))
    at_end = cache.examples is None and len(wanted) < settings.per_shard
    changes: dict[str, Any] = {"examples": end} if at_end else {}
    changes |= {**_skipped(counted), "next_index": end, "shards": shards}
    cache = cache.model_copy(update=changes)
    cache.save(folder / MANIFEST, force=True)
    return cache


def _skipped(place: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of examples that were left out."""
    names = {reason: tuple(names) for reason, names in place["names"].items()}
    return {"skipped": sum(place["skipped"].values()), "why_skipped": place["skipped"], "first_skipped": names}


def _readable(read: Reader) -> datasets.Example | BrokenExample:
    """The example, or why it cannot be used."""
    try:
        return read()
    except BrokenExample as error:
        return error


def _by_shape(examples: Iterable[datasets.Example | BrokenExample], counted: dict[str, Any]) -> list[list[Slot]]:
    """The usable examples, those of one shape together; the others are `counted`, each picture once."""
    groups: dict[Any, list[Slot]] = {}
    for example in examples:
        if isinstance(example, BrokenExample):
            if not example.mirrored:
                counted |= datasets.count_in(counted, example.reason, example.name)
        else:
            groups.setdefault(example.image.shape, []).append(Slot(0, example, None))
    return list(groups.values())
