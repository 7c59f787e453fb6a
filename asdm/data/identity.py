"""Whether a data set is the one of before: its content decides, not how it is spelled or where it lies.

Compared are the names of all files, their sizes and captions, what is taken of them, and a sample of their bytes: of
up to 256 files, evenly spread, 1,024 blocks of 4 KiB in all, evenly spread as well; files that these cover are read
whole. Of shards that are URLs only the names are known.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from asdm.data import datasets
from asdm.utils.record import sha256_of

FINGERPRINT, SAMPLE, BROKEN = "data_fingerprint", "data_sample", "data_broken"
SAMPLED_FILES, BLOCKS, BLOCK_BYTES = 256, 1024, 4096
TAR_BLOCK = 512
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd files begin


def identity(data: Any, before: Mapping[str, Any] | None = None, repairable: bool = False) -> dict[str, Any]:
    """The entries of a record by which a later call knows the data again.

    `before` are those of the record so far, if there is one; what an earlier version hashed in another way is hashed
    in that way again. With `repairable`, a new record lists shards that are broken: their contents do not count.
    """
    broken = before.get(BROKEN) if before else broken_shards(data) if repairable else None
    broken = broken if isinstance(broken, list) else []
    own: dict[str, Any] = {FINGERPRINT: datasets.fingerprint(data), SAMPLE: sample_sha256(data, broken)}
    own |= {BROKEN: broken} if broken else {}
    if not before:
        return own
    earlier = earlier_identity(data)
    if before.get(FINGERPRINT) == earlier[FINGERPRINT]:
        own[FINGERPRINT] = earlier[FINGERPRINT]
    if SAMPLE not in before:
        del own[SAMPLE]
    elif before[SAMPLE] == earlier[SAMPLE]:
        own[SAMPLE] = earlier[SAMPLE]
    return own


def earlier_identity(data: Any) -> dict[str, Any]:
    """The entries as earlier versions took them: shards as they were typed, and two blocks of each sampled file."""
    files = [Path(file) for file in getattr(data, "files", ()) or getattr(data, "shards", ())]
    files = [file for file in files[:: -(-len(files) // SAMPLED_FILES) or 1] if file.is_file()]
    fingerprint = getattr(data, "earlier_fingerprint", None) or datasets.fingerprint(data)
    return {FINGERPRINT: fingerprint, SAMPLE: _blocks_sha256(files, 2)[:16] if files else None}


def sample_sha256(data: Any, without: Collection[str] = ()) -> str | None:
    """Hash of the sizes of a data set's files and of a sample of their bytes; None where it has no files of its own.

    Files whose names are in `without` do not count.
    """
    files = [file for file in _files_of(data) if file.name not in without]
    if not files:
        return None
    sizes = [file.stat().st_size for file in files]
    spread = files[:: -(-len(files) // SAMPLED_FILES)]
    return sha256_of([sizes, _blocks_sha256(spread, max(2, BLOCKS // len(spread)))])[:16]


def broken_shards(data: Any) -> list[str]:
    """The names of a stream's files that are cut off or cannot be read, as far as their ends tell.

    A tar ends with zeros; of a compressed one nothing is known before all of it is read.
    """
    return [file.name for file in map(Path, getattr(data, "shards", ())) if file.is_file() and _is_cut(file)]


def _files_of(data: Any) -> list[Path]:
    """The files of a data set on this machine, and the tables of captions beside shards."""
    shards = [Path(name) for name in getattr(data, "shards", ())]
    tables = [shard.with_suffix(".parquet") for shard in shards]
    return [file for file in (*map(Path, getattr(data, "files", ())), *shards, *tables) if file.is_file()]


def _blocks_sha256(files: Sequence[Path], most: int) -> str:
    """Hash of each file's size and of up to `most` of its blocks, from its beginning to its end."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                count = min(most, max(2, -(-size // BLOCK_BYTES)))
                digest.update(size.to_bytes(8, "little"))
                for i in range(count):
                    stream.seek(i * max(size - BLOCK_BYTES, 0) // (count - 1))
                    digest.update(stream.read(BLOCK_BYTES))
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def _is_cut(shard: Path) -> bool:
    try:
        with shard.open("rb") as stream:
            if stream.read(6).startswith(COMPRESSED):
                return False
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - TAR_BLOCK, 0))
            return size % TAR_BLOCK != 0 or size < TAR_BLOCK or any(stream.read())
    except OSError:
        return True
