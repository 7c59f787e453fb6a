"""Shards and folders in the ways in which real ones are broken: what is used, and why the rest is not.

tests/fixtures/data is described in its README.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asdm.data import cache, datasets
from asdm.data.datasets import folder, latents, webdataset
from asdm.data.settings import CacheSettings, Selection

CASES = Path(__file__).parents[2] / "fixtures" / "data"
TOO_SMALL = "a side of fewer than 8 pixels"
USED = {
    "000001": "a red cube",
    "22.0/1": "dots in folder and stem",
    "photo": "extension twice",
    "000007": "upper case extensions",
    "000009": "palette with transparency",
    "000010": "16-bit grey",
    "000011": "EXIF orientation 6: upright size is 32x64 (WxH)",
    "000012": "café 猫 🐈",
    "000014": "a PNG named .jpg",
}
LEFT_OUT = {
    "a truncated or damaged picture": ["000003"],
    "no caption": ["000004"],
    "no picture": ["000005"],
    "an empty caption": ["000006"],
    "an empty picture file": ["000008"],
    "a caption that is not UTF-8": ["000013"],
    TOO_SMALL: ["000015"],
    "a caption that is null": ["000016"],
    "a file of macOS, not a picture": ["._000001"],
}


def first_pass(data: webdataset.Shards) -> list[datasets.Example]:
    """The examples of the first pass over all shards, and the first of the second."""
    found = []
    for example, place in data.read(0, 0, {}):
        found.append(example)
        if place["pass"] == 1:
            assert place["skipped"] == data.left_out.counts
            return found[:-1]
    raise AssertionError("a stream has no end")


def test_a_shard_gives_what_can_be_used_and_counts_the_rest_by_reason() -> None:
    data = webdataset.Shards((str(CASES / "shard-00000.tar"),), 16)
    assert {example.caption for example in first_pass(data)} == {*USED.values()}
    assert data.left_out.counts == dict.fromkeys(LEFT_OUT, 1)
    assert {reason: [name.rpartition(":")[2] for name in names] for reason, names in data.left_out.names.items()} == (
        LEFT_OUT
    )
    assert "Left out 1 example, no caption: shard-00000.tar:000004." in data.left_out.lines()


def test_pictures_of_every_kind_are_upright_rgb() -> None:
    data = webdataset.Shards((str(CASES / "shard-00000.tar"),), 64, selection=Selection(buckets=True))
    by_caption = {example.caption: example for example in first_pass(data)}
    turned = by_caption[USED["000011"]]
    assert turned.time_ids[:2] == (64, 32)  # height and width as it was, upright
    assert turned.image.shape[1] == 2 * turned.image.shape[2]
    grey = by_caption["16-bit grey"].image
    assert -1 <= grey.min() < grey.max() <= 1
    assert grey.mean() < 0.5, "not all white"
    assert {example.image.shape[0] for example in by_caption.values()} == {3}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_of_pillow_keeps_its_grey(mode: str) -> None:
    from asdm.data.datasets._pictures import in_rgb

    ramp = Image.fromarray(np.tile(np.arange(0, 256, dtype=np.uint8), (4, 1)))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    else:
        picture = ramp.convert("RGB").convert(mode) if mode not in ("F", "L", "1") else ramp.convert(mode)
    values = np.asarray(in_rgb(picture)).astype(int)
    assert values.shape == (4, 256, 3)
    error = np.abs(values - np.asarray(ramp).astype(int)[:, :, None]).mean()
    assert error < {"1": 130, "P": 20}.get(mode, 4)
    assert values[:, :8].mean() < 60 < 190 < values[:, -8:].mean()


def test_a_shard_cut_in_the_middle_gives_what_is_before_the_cut_and_says_so_once(capsys: Any) -> None:
    data = webdataset.Shards((str(CASES / "shard-00001-cut.tar"),), 16)
    assert {example.caption for example in first_pass(data)} == {
        USED[key] for key in ("000001", "22.0/1", "photo", "000007")
    }
    said = capsys.readouterr().err
    assert said.count("is broken after") == 1
    assert "shard-00001-cut.tar" in said
    assert data.left_out.counts[webdataset.BROKEN_SHARD] == 1


def test_a_shard_is_cached_like_a_folder(tiny_pipeline: Path, tmp_path: Path) -> None:
    done = cache.cache_latents(
        f"webdataset:{CASES}/shard-00000.tar", str(tiny_pipeline), tmp_path / "c", CacheSettings(per_shard=7)
    )
    assert sorted(caption for shard in done.shards for caption in shard.captions) == sorted(USED.values())
    assert (done.examples, done.skipped, done.finished) == (18, 9, True)
    assert done.why_skipped == dict.fromkeys(LEFT_OUT, 1)
    assert len(latents.open_data("train", 64, str(tmp_path / "c"))) == 9


def test_a_folder_whose_name_looks_like_a_picture(capsys: Any) -> None:
    data = folder.open_data("train", 16, str(CASES / "folder"))
    assert data.captions == ("A red image",)
    assert data[0].image.shape == (3, 16, 16)


def test_rows_that_cannot_be_used_are_counted_by_reason() -> None:
    data = folder.open_data("train", 16, str(CASES / "imagefolder"))
    assert data.captions == ("first",)
    assert data.left_out.counts == {
        "a path that is not relative to its table": 1,
        "a caption that is null": 1,
        "no such file": 1,
        "a second row for the same file": 1,
    }


def test_a_table_of_another_name_is_named(tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(CASES / "imagefolder", tmp_path / "photos")
    (tmp_path / "photos" / "train" / "metadata.jsonl").unlink()
    data = folder.open_data("train", 16, str(tmp_path / "photos"))
    assert set(data.captions) == {""}
    said = capsys.readouterr().err
    assert "has no captions: its 3 pictures are used without (unconditional)" in said
    assert "metadata.json1 was not read; a table of captions is called metadata.jsonl" in said
