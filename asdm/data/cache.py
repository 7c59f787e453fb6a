"""`asdm cache`: VAE latents and text states of a data set, computed once and saved in shards; resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from asdm.data import datasets
from asdm.data.datasets import BrokenExample, Encoded
from asdm.data.datasets.latents import MANIFEST, LatentCache, Shard, as_tensors
from asdm.data.encoder import Encoder
from asdm.data.loader import Slot
from asdm.data.settings import CacheSettings
from asdm.models import example_inputs, execution
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.utils.io import make_folder, write_whole
from asdm.utils.progress import Tell
from asdm.utils.snapshots import clear_leftovers

BATCH = 8


def cache_latents(
    data: str, teacher: str, output: Path, settings: CacheSettings = CacheSettings(), tell: Tell = lambda *_: None
) -> LatentCache:
    """Encode a data set into the folder `output`, resuming an earlier call with the same arguments.

    Raises ValueError for a stream, whose examples have no index, or a folder that holds anything else.
    """
    execution.check_setup(settings)
    family = load_family(teacher)
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    examples = datasets.open_source(data, settings.split, side)
    if isinstance(examples, datasets.Stream):
        raise ValueError(f"{data} is a stream, which cannot be cached; unpack its shards and use folder:DIR.")
    tell("loading the encoders", 0, None)
    encoder = Encoder(pipeline(family, None, Setup(settings.weights, settings.device, seed=settings.seed)))
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
    while not cache.finished:
        cache = _add_shard(output, cache, examples, encoder, settings.per_shard, tell)
    return cache


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
    folder: Path, cache: LatentCache, data: Sequence[Any], encoder: Encoder, per_shard: int, tell: Tell
) -> LatentCache:
    """Encode the next examples and write them: the shard first, then the manifest that names it."""
    end = min(cache.next_index + per_shard, cache.examples)
    rows: list[Encoded] = []
    for start in range(cache.next_index, end, BATCH):
        rows += encoder.encode([Slot(0, e, None) for e in _readable(data, range(start, min(start + BATCH, end)))])
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


def _readable(data: Sequence[Any], numbers: range) -> list[Any]:
    examples = []
    for i in numbers:
        try:
            examples.append(data[i])
        except BrokenExample:
            continue
    return examples
