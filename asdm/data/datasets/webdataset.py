"""Tar shards of pictures and captions, as LAION's downloader writes them: `KEY.jpg`, `KEY.txt` and perhaps `KEY.json`.

Shards are files or http(s) URLs, read from front to back; `{00000..00331}` and `*` are expanded. They are distributed
to lanes, and lanes to processes: a lane reads its shards in a new order in every pass, and shuffles the examples block
by block. The pictures of a step follow from the seed and the number of lanes, not from the number of processes, and a
resumed run continues in the shard where it stopped.

A key ends at the first dot of a file's name, as in webdataset. A caption is in `.txt`, `.caption` or `.json`, or in the
Parquet file beside a local shard. What cannot be used is left out and counted by its reason in the first pass. A shard
that cannot be read, or is truncated, is reported, counted, and skipped from there on.
"""

from __future__ import annotations

import http.client
import re
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

import torch

from asdm.data.datasets import BrokenExample, Example, LeftOut, count_in
from asdm.data.datasets._metadata import (
    BESIDE,
    BrokenRow,
    Row,
    caption_beside,
    caption_in,
    check_name,
    check_score,
    check_split,
    check_split_name,
    read_table,
)
from asdm.data.datasets._pictures import NOT_DECODED, OTHER_SUFFIXES, SUFFIXES, Frame, decode_picture
from asdm.data.loader import seeded
from asdm.data.settings import Selection
from asdm.utils import console
from asdm.utils.pictures import MOST_BYTES
from asdm.utils.record import sha256_of

LANES = 8  # at most; no more than there are shards
BLOCK = 512  # examples of a lane that are shuffled together, as bytes
BEGIN: dict[str, Any] = {"pass": 0, "shard": 0, "example": 0, "given": 0}
BROKEN_SHARD = "a shard that is broken from here on"
TIMEOUT_S = 60
URL_SAFE = "%/:=&?~#+!$,;'@()*[]"  # what a URL may have besides letters and digits
MOST_SHARDS = 1_000_000  # of one {0..9}
MOST_PARTS = 64  # files of one key
OVERSIZE, APART = "(oversize)", "(apart)"  # marks among an example's files


@dataclass(frozen=True)
class Group:
    """The files of one key, by what follows the key's first dot, and the row of its shard's Parquet file."""

    shard: str
    key: str
    parts: dict[str, bytes]
    row: Row | BrokenExample = field(default_factory=dict)  # or why it cannot be used

    @property
    def name(self) -> str:
        return f"{Path(self.shard).name}:{self.key}"


@dataclass(frozen=True)
class Shards:
    """A stream of tar shards; each lane has at least one."""

    shards: tuple[str, ...]
    size: int
    block: int = BLOCK
    most_lanes: int = LANES
    split: str = "train"
    selection: Selection = field(default_factory=Selection)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False, repr=False)
    _reported: set[str] = field(default_factory=set, compare=False, repr=False)
    _useful: set[str] = field(default_factory=set, compare=False, repr=False)  # shards that gave an example
    _useless: set[str] = field(default_factory=set, compare=False, repr=False)  # read to their ends without one

    @property
    def lanes(self) -> int:
        """A power of two, so that most batch sizes and numbers of processes are divisible by it."""
        lanes = 1
        while 2 * lanes <= min(self.most_lanes, len(self.shards)):
            lanes *= 2
        return lanes

    @property
    def fingerprint(self) -> str:
        """Hash of the shards' names without their folders, how they are distributed, and what is taken of them."""
        return self._fingerprint([name if "://" in name else Path(name).name for name in self.shards])

    @property
    def earlier_fingerprint(self) -> str:
        """What earlier versions took: names as they were typed, with the sizes of local shards."""
        return self._fingerprint([(n, Path(n).stat().st_size if Path(n).exists() else None) for n in self.shards])

    def _fingerprint(self, files: list[Any]) -> str:
        return sha256_of([files, self.size, self.block, self.lanes, *self.selection.fingerprint()])[:16]

    def read(self, seed: int, lane: int, place: dict[str, Any]) -> Iterator[tuple[Example, dict[str, Any]]]:
        """Endless examples of a lane. A place is the start of a block (pass, shard, example) and the offset in it.

        With `flip`, every second example of a pass is mirrored, and in the next pass others are. Raises ValueError if
        no shard has an example.
        """
        at = BEGIN | {"skipped": {}, "names": {}} | place
        last_pass = at["pass"]
        while True:
            rows, after, broken = self._block(seed, lane, at)
            for name in broken if at["pass"] == 0 and at["given"] == 0 else ():
                at = self._count(at, BROKEN_SHARD, Path(name).name)
            order = torch.randperm(len(rows), generator=seeded(seed, lane, at["pass"], at["shard"], at["example"]))
            while at["given"] < len(rows):
                group = rows[int(order[at["given"]])]
                mirrored = self.selection.flip and bool((at["given"] + at["pass"]) % 2)
                at = at | {"given": at["given"] + 1}
                try:
                    example = self._example(group, mirrored)
                except BrokenExample as error:
                    if at["pass"] == 0:
                        at = self._count(at, error.reason, group.name)
                    continue
                last_pass = at["pass"]
                self._useful.add(group.shard)
                yield example, at
            if after["pass"] > at["pass"] > last_pass:
                self._useless.update(self._order(seed, lane, at["pass"]))
            at = after | {key: at[key] for key in ("skipped", "names")}
            if not self._useful and self._useless >= {*self.shards}:  # a lane may meet broken shards alone for a while
                why = " ".join(self.left_out.lines())
                raise ValueError(
                    f"none of the shards {_listed(self.shards)} has a picture with a caption. {why}".strip()
                )

    def in_order(self, first: int) -> Iterator[Callable[[], Example]]:
        """Every example once, from the `first` on, as a function that decodes it or raises BrokenExample.

        With `flip`, each comes a second time, mirrored.
        """
        number = 0
        for mirrored in (False, True) if self.selection.flip else (False,):
            for name in self.shards:
                for _, group in self._groups_of(name, 0):
                    number += 1
                    mine = group is None or check_split(group.key, self.split, self.selection)
                    if number > first and mine:
                        yield self._decoder(name, group, mirrored)

    def _decoder(self, name: str, group: Group | None, mirrored: bool) -> Callable[[], Example]:
        def decode() -> Example:
            if group is None:
                raise BrokenExample(BROKEN_SHARD, Path(name).name, mirrored)
            try:
                return self._example(group, mirrored)
            except BrokenExample as error:
                raise BrokenExample(error.reason, group.name, mirrored) from None

        return decode

    def _count(self, at: dict[str, Any], reason: str, name: str) -> dict[str, Any]:
        self.left_out.add(reason, name)
        return count_in(at, reason, name, say=reason != BROKEN_SHARD)  # which was said when it broke

    def _block(self, seed: int, lane: int, at: dict[str, Any]) -> tuple[list[Group], dict[str, Any], list[str]]:
        """The examples of the next block, not yet decoded, the place after it, and shards that broke in it.

        A block ends with its pass.
        """
        rows, broken = list[Group](), list[str]()
        shard, skip = at["shard"], at["example"]
        names = self._order(seed, lane, at["pass"])
        while shard < len(names):
            for count, group in self._groups_of(names[shard], skip):
                if group is None:
                    broken.append(names[shard])
                    continue
                if not check_split(group.key, self.split, self.selection):
                    continue
                rows.append(group)
                if len(rows) == self.block:
                    return rows, BEGIN | {"pass": at["pass"], "shard": shard, "example": count}, broken
            shard, skip = shard + 1, 0
        return rows, BEGIN | {"pass": at["pass"] + 1}, broken

    def _order(self, seed: int, lane: int, number: int) -> list[str]:
        """The shards of a lane in one pass: all shards are shuffled, and this lane gets every lanes-th."""
        order = torch.randperm(len(self.shards), generator=seeded(seed, number, 0)).tolist()
        return [self.shards[i] for i in order[lane :: self.lanes]]

    def _groups_of(self, name: str, skip: int) -> Iterator[tuple[int, Group | None]]:
        """(examples read so far, the example's files; None where the shard breaks), from example `skip` on."""
        count = 0
        try:
            rows = _rows_beside(name)
            with closing(_opened(name)) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
                for key, parts in _groups(tar, skip):
                    count += 1
                    if count > skip:
                        row = rows if isinstance(rows, BrokenExample) else rows.get(key.rpartition("/")[2], {})
                        yield count, Group(name, key, parts, row)
        except Exception as error:  # tarfile and http.client raise almost anything for damaged bytes
            if name not in self._reported:
                self._reported.add(name)
                console.say(f"Warning: the shard {name} is broken after {count} examples: {_why(error)}.")
            if count >= skip:
                yield count + 1, None

    def _example(self, group: Group, mirrored: bool = False) -> Example:
        """Raises BrokenExample with the reason for files that make no example."""
        check_name(Path(group.key).name)
        if OVERSIZE in group.parts:
            raise BrokenExample(f"files of more than {MOST_BYTES >> 20} MiB, or more than {MOST_PARTS} of them")
        picture = _part(group.parts, SUFFIXES)
        if picture is None and APART in group.parts:
            raise BrokenExample("a caption that is not beside its picture in the shard, which must be sorted by name")
        if picture is None:
            raise BrokenExample(NOT_DECODED if _part(group.parts, OTHER_SUFFIXES) is not None else "no picture")
        beside = {suffix: part for suffix in BESIDE if (part := _part(group.parts, (suffix,))) is not None}
        listed: Row = {} if isinstance(group.row, BrokenExample) else group.row
        if isinstance(group.row, BrokenExample) and not beside:
            raise BrokenExample(group.row.reason)
        caption, row = (caption_in(listed), {}) if listed and not beside else caption_beside(beside)
        check_score({**listed, **row}, self.selection)
        image, time_ids = decode_picture(picture, Frame.of(self.size, self.selection), mirrored)
        return Example(image, caption, time_ids)


def _part(parts: Mapping[str, bytes], suffixes: Sequence[str]) -> bytes | None:
    """The first file with one of the suffixes, the shortest name first: `a.png` before `a.mask.png`."""
    return next((parts[name] for name in sorted(parts, key=len) if name.endswith(tuple(suffixes))), None)


def _why(error: Exception) -> str:
    """Why a shard breaks, in the words of whom it concerns."""
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off"
    reason = error.reason if type(error) is urllib.error.URLError else error
    if isinstance(reason, OSError | EOFError | MemoryError | tarfile.TarError | http.client.HTTPException | str):
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return said.strip().rstrip(".")
    return f"it is not a whole tar archive ({type(error).__name__})"


@lru_cache(maxsize=8)
def _rows_beside(shard: str) -> Mapping[str, Row | BrokenExample] | BrokenExample:
    """The rows of the Parquet file beside a local shard, by key, as img2dataset writes them, or why there are none."""
    table = Path(shard).with_suffix(".parquet")
    if "://" in shard or not table.is_file():
        return {}
    try:
        rows = [(row.row if isinstance(row, BrokenRow) else row, row) for row in read_table(table)]
    except ValueError as error:
        console.say_once(f"Warning: captions and scores beside {shard} are not used: {error}")
        return BrokenExample("no caption, and a table beside its shard that cannot be read")
    return {str(values["key"]): row for values, row in rows if "key" in values}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def _opened(name: str) -> Any:
    if not name.startswith(("http://", "https://")):
        return open(name, "rb")
    try:
        return _Body(urllib.request.urlopen(urllib.parse.quote(name, safe=URL_SAFE), timeout=TIMEOUT_S))
    except ValueError:
        raise tarfile.ReadError("its address is not a URL") from None


class _Body:
    """What a server sends, which http.client lets end before the length that it promised; this does not."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response, self.broke_off = response, False

    def read(self, size: int) -> bytes:
        try:
            part = self.response.read(size)
        except http.client.IncompleteRead as error:
            part, self.broke_off = error.partial, True
        if not part and size and (self.broke_off or self.response.length):
            raise http.client.IncompleteRead(part)
        return part

    def close(self) -> None:
        self.response.close()


class _Member(tarfile.TarInfo):
    """tarfile accepts a file that is truncated between two members or within a header; this does not."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("it has no end-of-archive mark") from None


def _groups(tar: tarfile.TarFile, skip: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each key with its adjacent files as {suffix: contents}; the first `skip` keys without contents."""
    key, number, keys = "", 0, set[str]()
    parts: dict[str, bytes] = {}
    for member in tar:
        if not member.isfile():
            continue
        folder, _, file = member.name.rpartition("/")
        # Hidden files, such as macOS's (._) beside those that they are about, have keys of their own.
        start = 2 if file.startswith("._") else int(file.startswith("."))
        stem, dot, suffix = file[start:].partition(".")
        stem = file[:start] + stem
        name = f"{folder}/{stem}" if folder else stem
        ending = f"{dot}{suffix}".lower()
        if parts and (name != key or ending in parts):  # the same file twice begins another example
            yield key, parts
            parts, number = {}, number + 1
        if name != key and name in keys:
            parts[APART] = b""
        key = name
        keys.add(name)
        if member.size > MOST_BYTES or len(parts) > MOST_PARTS:
            parts[OVERSIZE] = b""
            continue
        stream = tar.extractfile(member) if number >= skip else None
        parts[ending] = stream.read() if stream else b""
    if parts:
        yield key, parts


def open_data(
    split: str = "train", size: int = 512, source: str | None = None, selection: Selection = Selection()
) -> Shards:
    """The shards that `source` names: one, a list with commas, `{0000..0099}`, a pattern with `*`, or a folder.

    Raises ValueError if there are none, or if a file does not exist.
    """
    if not source:
        raise ValueError("the data set webdataset needs shards, such as webdataset:shards/{00000..00331}.tar.")
    check_split_name(split, source)
    names = [source] if Path(source).is_file() else [name for part in _split(source) for name in _expanded(part)]
    if not names:
        raise ValueError(f"no shard matches {source}.")
    missing = [name for name in names if "://" not in name and not Path(name).is_file()]
    if there := [name for name in missing if Path(name).exists()]:
        raise ValueError(f"the shard {_listed(there)} is not a file.")
    if missing:
        raise ValueError(f"the shard {_listed(missing)} does not exist.")
    if other := [name for name in names if "://" in name and not name.startswith(("http://", "https://"))]:
        raise ValueError(f"the shard {other[0]} is neither a file nor an http(s) URL.")
    return Shards(tuple(names), size, split=split, selection=selection)


def _split(source: str) -> list[str]:
    """Split at commas outside braces."""
    return re.findall(r"(?:[^,{]|\{[^}]*\})+", source)


def _expanded(part: str) -> list[str]:
    """`a{08..10}b` → a08b, a09b, a10b; a folder or pattern → its files, sorted."""
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", part):
        first, last = match.groups()
        width = len(first) if len(first) == len(last) or first.startswith("0") else 0
        numbers = range(int(first), int(last) + 1)
        if int(last) - int(first) >= MOST_SHARDS:
            raise ValueError(f"{part} names more than {MOST_SHARDS:,} shards; name those that there are.")
        before, after = part[: match.start()], part[match.end() :]
        return [name for n in numbers for name in _expanded(f"{before}{n:0{width}d}{after}")]
    if "://" in part:
        return [part]
    if Path(part).is_dir():
        return sorted(str(file) for file in Path(part).glob("*.tar*") if not file.name.startswith("."))
    return sorted(glob(part)) if "*" in part else [part]
