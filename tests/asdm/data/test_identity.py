"""Data are known again by their content: not by how they are spelled, and not over changed files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from asdm.data import datasets, identity as content
from asdm.data.identity import BLOCK_BYTES, BROKEN, FINGERPRINT, SAMPLE, broken_shards, earlier_identity, identity
from tests.pictures import shard


def known(name: str) -> dict[str, Any]:
    return identity(datasets.open_source(name, "train", 16))


def change(file: Path, at: int) -> None:
    """Flip a bit of a file, whose size and time stay."""
    before, found = file.stat(), bytearray(file.read_bytes())
    found[at] ^= 1
    file.write_bytes(found)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def mine(photos: Path, shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(shards, tmp_path / "shards")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "again", "file"),
    [
        ("folder:photos", "folder:./photos/", "photos/7.png"),
        ("webdataset:shards", "webdataset:./shards/{00000..00003}.tar", "shards/00002.tar"),
    ],
)
def test_the_content_decides_and_not_the_spelling(
    mine: Path, monkeypatch: pytest.MonkeyPatch, name: str, again: str, file: str
) -> None:
    monkeypatch.chdir(mine)
    before = known(name)
    assert known(again) == before
    monkeypatch.chdir(mine.parent)
    assert known(name.replace(":", f":{mine.name}/")) == before
    middle = (mine / file).stat().st_size // 2
    change(mine / file, middle)
    assert known(name.replace(":", f":{mine}/")) != before
    change(mine / file, middle)
    assert known(name.replace(":", f":{mine}/")) == before


def test_captions_in_a_table_beside_a_shard_are_content(shards: Path, mine: Path) -> None:
    bare = known(f"webdataset:{mine}/shards")
    (mine / "shards" / "00001.parquet").write_bytes(b"a table")
    with_table = known(f"webdataset:{mine}/shards")
    (mine / "shards" / "00001.parquet").write_bytes(b"A table")
    assert len({one[SAMPLE] for one in (bare, with_table, known(f"webdataset:{mine}/shards"))}) == 3


@pytest.mark.parametrize("place", [0, (2**20 - BLOCK_BYTES) // 3 + 5, 2**20 - 1])
def test_a_large_file_is_sampled_from_end_to_end_and_a_small_one_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(content, "BLOCKS", 8)  # four of each

    class Two:
        files = (tmp_path / "large", tmp_path / "small")
        captions = ("a", "b")

        def __len__(self) -> int:
            return 2

    Two.files[0].write_bytes(bytes(2**20))
    Two.files[1].write_bytes(bytes(5000))
    before = identity(Two())
    for file, at in ((Two.files[0], place), (Two.files[1], place % 5000)):
        change(file, at)
        assert identity(Two()) != before
        change(file, at)
    assert identity(Two()) == before


def test_a_record_of_an_earlier_version_is_understood(shards: Path, photos: Path) -> None:
    for name in (f"webdataset:{shards}", f"folder:{photos}"):
        data = datasets.open_source(name, "train", 16)
        earlier, now = earlier_identity(data), identity(data)
        assert identity(data, earlier) == earlier
        assert identity(data, {FINGERPRINT: earlier[FINGERPRINT]}) == {FINGERPRINT: earlier[FINGERPRINT]}
        assert identity(data, now) == now
        assert identity(data, {FINGERPRINT: "0", SAMPLE: "0"}) == now


def test_a_shard_that_was_broken_may_be_repaired(tmp_path: Path) -> None:
    for n in range(3):
        shard(tmp_path / f"{n}.tar", range(10 * n, 10 * n + 10), cut=n == 1)
    data = datasets.open_source(f"webdataset:{tmp_path}", "train", 16)
    before = identity(data, repairable=True)
    assert before[BROKEN] == broken_shards(data) == ["1.tar"]
    shard(tmp_path / "1.tar", range(10, 20))
    assert identity(data, before, repairable=True) == before
    shard(tmp_path / "2.tar", range(30, 40))
    assert identity(data, before, repairable=True) != before
    assert BROKEN not in identity(data)


@pytest.mark.parametrize("found", [b"", b"no tar", bytes(511), b"x" * 1024])
def test_a_broken_shard_is_known_by_its_end(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(found)
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8b and more")  # nobody knows before it is read
    shard(tmp_path / "c.tar", range(3))
    assert broken_shards(datasets.open_source(f"webdataset:{tmp_path}", "train", 16)) == ["a.tar"]
