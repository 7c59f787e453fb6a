"""Tar shards of pictures and captions, as LAION's downloader writes them: `KEY.jpg`, `KEY.txt` and perhaps `KEY.json`.

Shards are files or http(s) URLs, read from front to back; `{00000..00331}` and `*` are expanded. They are distributed
to lanes, and lanes to processes: a lane reads its shards in a new order in every pass, and shuffles the examples block
by block. The pictures of a step follow from the seed and the number of lanes, not from the number of processes, and a
resumed run continues in the shard where it stopped.

A broken picture or caption is skipped and counted. A shard that cannot be read, or is truncated, is reported, counted,
and skipped from there on.
"""

from __future__ import annotations

import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import IO

import torch

from asdm.data.datasets import Example
from asdm.data.datasets._pictures import SUFFIXES, decode_picture
from asdm.data.loader import seeded
from asdm.utils import console
from asdm.utils.io import sha256_of

LANES = 8  # at most; no more than there are shards
BLOCK = 512  # examples of a lane that are shuffled together, as bytes
BEGIN = {"pass": 0, "shard": 0, "example": 0, "given": 0, "broken": 0}
TIMEOUT_S = 60


@dataclass(frozen=True)
class Shards:
    """A stream of tar shards; each lane has at least one."""

    shards: tuple[str, ...]
    size: int
    block: int = BLOCK
    most_lanes: int = LANES
    _reported: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def lanes(self) -> int:
        """A power of two, so that most batch sizes and numbers of processes are divisible by it."""
        lanes = 1
        while 2 * lanes <= min(self.most_lanes, len(self.shards)):
            lanes *= 2
        return lanes

    @property
    def fingerprint(self) -> str:
        """Hash of the shards' names, the sizes of local ones, and how they are distributed."""
        files = [(name, Path(name).stat().st_size if Path(name).exists() else None) for name in self.shards]
        return sha256_of([files, self.size, self.block, self.lanes])[:16]

    def read(self, seed: int, lane: int, place: dict[str, int]) -> Iterator[tuple[Example, dict[str, int]]]:
        """Endless examples of a lane. A place is the start of a block (pass, shard, example) and the offset in it.

        Raises ValueError if a whole pass has no example.
        """
        at = BEGIN | place
        last_pass = at["pass"]
        while True:
            rows, after = self._block(seed, lane, at)
            if at["given"] == 0:
                at = at | {"broken": after["broken"]}
            order = torch.randperm(len(rows), generator=seeded(seed, lane, at["pass"], at["shard"], at["example"]))
            while at["given"] < len(rows):
                example = self._example(rows[int(order[at["given"]])])
                at = at | {"given": at["given"] + 1, "broken": at["broken"] + (example is None)}
                if example is not None:
                    last_pass = at["pass"]
                    yield example, at
            at = after | {"broken": at["broken"]}
            if at["pass"] > last_pass + 1:
                raise ValueError(f"none of the shards {_listed(self.shards)} has a picture with a caption.")

    def _block(self, seed: int, lane: int, at: dict[str, int]) -> tuple[list[dict[str, bytes]], dict[str, int]]:
        """The examples of the next block, not yet decoded, and the place after it; a block ends with its pass."""
        rows: list[dict[str, bytes]] = []
        shard, skip, broken = at["shard"], at["example"], at["broken"]
        names = self._order(seed, lane, at["pass"])
        while shard < len(names):
            for count, parts in self._groups_of(names[shard], skip):
                if parts is None:
                    broken += 1
                    continue
                rows.append(parts)
                if len(rows) == self.block:
                    return rows, BEGIN | {"pass": at["pass"], "shard": shard, "example": count, "broken": broken}
            shard, skip = shard + 1, 0
        return rows, BEGIN | {"pass": at["pass"] + 1, "broken": broken}

    def _order(self, seed: int, lane: int, number: int) -> list[str]:
        """The shards of a lane in one pass: all shards are shuffled, and this lane gets every lanes-th."""
        order = torch.randperm(len(self.shards), generator=seeded(seed, number, 0)).tolist()
        return [self.shards[i] for i in order[lane :: self.lanes]]

    def _groups_of(self, name: str, skip: int) -> Iterator[tuple[int, dict[str, bytes] | None]]:
        """(examples read so far, files of the example; None where the shard breaks), from example `skip` on."""
        count = 0
        try:
            with _opened(name) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
                for parts in _groups(tar, skip):
                    count += 1
                    if count > skip:
                        yield count, parts
        except (OSError, EOFError, tarfile.TarError) as error:
            if name not in self._reported:
                self._reported.add(name)
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                console.say(f"Warning: the shard {name} is broken after {count} examples: {reason}.")
            if count >= skip:
                yield count + 1, None

    def _example(self, parts: dict[str, bytes]) -> Example | None:
        picture = next((parts[suffix] for suffix in SUFFIXES if suffix in parts), None)
        caption = parts.get(".txt")
        if picture is None or caption is None:
            return None
        try:
            return Example(decode_picture(picture, self.size), caption.decode("utf-8").strip())
        except ValueError:  # UnicodeDecodeError is one
            return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def _opened(name: str) -> IO[bytes]:
    if name.startswith(("http://", "https://")):
        return urllib.request.urlopen(name, timeout=TIMEOUT_S)
    return open(name, "rb")


class _Member(tarfile.TarInfo):
    """tarfile accepts a file that is truncated between two members; this does not."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it has no end-of-archive mark") from None


def _groups(tar: tarfile.TarFile, skip: int) -> Iterator[dict[str, bytes]]:
    """The adjacent files of each key as {suffix: contents}; the first `skip` keys without contents."""
    key, number = "", 0
    parts: dict[str, bytes] = {}
    for member in tar:
        if not member.isfile():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if f"{folder}/{stem}" != key and parts:
            yield parts
            parts, number = {}, number + 1
        key = f"{folder}/{stem}"
        stream = tar.extractfile(member) if number >= skip else None
        parts[f"{dot}{suffix}".lower()] = stream.read() if stream else b""
    if parts:
        yield parts


def open_data(split: str = "train", size: int = 512, source: str | None = None) -> Shards:
    """The shards that `source` names: one, a list with commas, `{0000..0099}`, a pattern with `*`, or a folder.

    Raises ValueError if there are none, or if a file does not exist.
    """
    if not source:
        raise ValueError("the data set webdataset needs shards, such as webdataset:shards/{00000..00331}.tar.")
    names = [name for part in _split(source) for name in _expanded(part)]
    if not names:
        raise ValueError(f"no shard matches {source}.")
    missing = [name for name in names if "://" not in name and not Path(name).is_file()]
    if missing:
        raise ValueError(f"the shard {_listed(missing)} does not exist.")
    if other := [name for name in names if "://" in name and not name.startswith(("http://", "https://"))]:
        raise ValueError(f"the shard {other[0]} is neither a file nor an http(s) URL.")
    return Shards(tuple(names), size)


def _split(source: str) -> list[str]:
    """Split at commas outside braces."""
    return re.findall(r"(?:[^,{]|\{[^}]*\})+", source)


def _expanded(part: str) -> list[str]:
    """`a{08..10}b` → a08b, a09b, a10b; a folder or pattern → its files, sorted."""
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", part):
        first, last = match.groups()
        width = len(first) if len(first) == len(last) or first.startswith("0") else 0
        numbers = range(int(first), int(last) + 1)
        before, after = part[: match.start()], part[match.end() :]
        return [name for n in numbers for name in _expanded(f"{before}{n:0{width}d}{after}")]
    if "://" in part:
        return [part]
    if Path(part).is_dir():
        return sorted(str(file) for file in Path(part).glob("*.tar*"))
    return sorted(glob(part)) if "*" in part else [part]
