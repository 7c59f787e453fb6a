"""`asdm cache`: a data set's examples as latents and text states, in shards."""

from __future__ import annotations

from asdm.utils.record import Frozen, Record, later


class Shard(Frozen):
    """A file of examples of one shape, and their captions in order."""

    file: str
    bytes: int
    captions: tuple[str, ...]
    shape: tuple[int, int] | None = later(None)  # of the latents, where the shards differ
    sha256: str | None = later(None)  # of the file


class LatentCache(Record, schema="asdm.latents/1"):
    """`asdm.latents/1`: what is encoded, by which encoders, and how far."""

    data: str
    data_fingerprint: str
    data_sample: str | None = later(None)  # of the bytes of the data set's files (asdm/data/identity.py)
    split: str
    size: int
    dtype: str
    encoder_sha256: str
    examples: int | None  # of the data set; None for shards that were not read to their end
    selection: tuple[str, ...] = later(())  # what of it was taken, as --option=value
    skipped: int = 0  # examples that cannot be used
    why_skipped: dict[str, int] = later({})  # reason → how many of them
    first_skipped: dict[str, tuple[str, ...]] = later({})  # reason → the first of them by name
    next_index: int = 0
    shards: tuple[Shard, ...] = ()

    @property
    def finished(self) -> bool:
        return self.examples is not None and self.next_index >= self.examples
