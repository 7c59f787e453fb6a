"""Shards and folders in the ways in which real ones are broken: what is used, and why the rest is not.

tests/fixtures/data is described in its README.md.
"""

from __future__ import annotations

import io
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asdm.data import cache, datasets, loader
from asdm.data.datasets import folder, latents, webdataset
from asdm.data.datasets._pictures import Frame, bucket_shapes, decode_picture
from asdm.data.settings import CacheSettings, Selection
from tests.pictures import picture, shard

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


# ---------------------------------------------------------------------------------------------- captions, selections


def rows(count: int) -> list[dict[str, Any]]:
    return [{"file_name": f"{n}.png", "text": f"number {n}", "AESTHETIC_SCORE": n} for n in range(count)]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_captions_come_from_a_table_of_any_kind(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    table, file = pd.DataFrame(rows(4)), tmp_path / f"metadata.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(file)
    elif suffix == "csv":
        table.to_csv(file, index=False)
    else:
        table.to_json(file, orient="records", lines=True)
    data = folder.open_data("train", 16, str(tmp_path))
    assert data.captions == tuple(f"number {n}" for n in range(4))
    better = folder.open_data("train", 16, str(tmp_path), Selection(min_aesthetic=2))
    assert better.captions == ("number 2", "number 3")
    assert better.left_out.counts == {"an aesthetic score below 2": 2}
    assert datasets.fingerprint(data) != datasets.fingerprint(better)


def test_captions_come_from_files_beside_pictures_and_shards(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    for n, suffix in enumerate((".txt", ".caption", ".json")):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        text = f'{{"caption": "number {n}", "aesthetic": {n}}}' if suffix == ".json" else f"number {n}\n"
        (tmp_path / f"{n}{suffix}").write_text(text)
    assert folder.open_data("train", 16, str(tmp_path)).captions == ("number 0", "number 1", "number 2")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        tar.add(tmp_path / "1.png", "00000001.png")
        tar.add(tmp_path / "2.png", "00000002.png")
    pd.DataFrame({"key": ["00000001"], "caption": ["from the table"]}).to_parquet(tmp_path / "00000.parquet")
    data = webdataset.Shards((str(tmp_path / "00000.tar"),), 16)
    assert [example.caption for example in first_pass(data)] == ["from the table"]
    assert data.left_out.counts == {"no caption": 1}


def test_small_pictures_are_left_out_and_flipped_ones_come_mirrored(tmp_path: Path) -> None:
    for n, size in enumerate(((20, 16), (40, 32))):
        (tmp_path / f"{n}.png").write_bytes(picture(n, size))
        (tmp_path / f"{n}.txt").write_text(f"number {n}")
    data = folder.open_data("train", 16, str(tmp_path), Selection(min_side=32, flip=True))
    assert len(data) == 4
    assert data.captions == ("number 0", "number 1") * 2
    with pytest.raises(datasets.BrokenExample, match="a side of fewer than 32 pixels"):
        data[0]
    assert torch.equal(data[3].image, data[1].image.flip(2))
    batch = next(loader.batches(data, 4, 0, loader.Share(), 0, {}, 2))
    assert batch.skipped == {"a side of fewer than 32 pixels": 2}


def test_buckets_keep_shapes_and_a_batch_has_one(tmp_path: Path) -> None:
    shapes = bucket_shapes(512)
    assert (512, 512) in shapes
    assert {side % 64 for shape in shapes for side in shape} == {0}
    assert all(height * width <= 512**2 and max(height, width) <= 2 * min(height, width) for height, width in shapes)
    for n in range(7):
        (tmp_path / f"{n}.png").write_bytes(picture(n, (48, 24) if n % 3 else (24, 48)))
        (tmp_path / f"{n}.txt").write_text(f"number {n}")
    data = folder.open_data("train", 32, str(tmp_path), Selection(buckets=True))
    seen: set[str] = set()
    source = loader.batches(data, 2, 0, loader.Share(), 0, {}, 2)
    for _ in range(4):  # of 3 tall pictures two batches, of 4 wide ones two
        slots = next(source).slots
        assert len({slot.example.image.shape for slot in slots}) == 1
        seen |= {slot.example.caption for slot in slots}
    assert seen == {f"number {n}" for n in range(7)}
    (height, width) = data[1].image.shape[1:]
    assert width > height
    shards = webdataset.Shards(("x.tar",), 32, selection=Selection(buckets=True))
    with pytest.raises(ValueError, match="cache them first"):
        next(loader.batches(shards, 2, 0, loader.Share(), 0, {}, 1))


def test_buckets_are_cached_in_files_of_one_shape(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(4):
        (tmp_path / "photos" / f"{n}.png").write_bytes(picture(n, (48, 24) if n % 2 else (24, 48)))
        (tmp_path / "photos" / f"{n}.txt").write_text(f"number {n}")
    done = cache.cache_latents(
        f"folder:{tmp_path / 'photos'}", str(tiny_pipeline), tmp_path / "c", CacheSettings(buckets=True)
    )
    assert sorted(shard.captions for shard in done.shards) == [("number 0", "number 2"), ("number 1", "number 3")]
    data = latents.open_data("train", 64, str(tmp_path / "c"))
    assert data.shapes is not None
    assert [tuple(data[i].mean.shape[1:]) for i in range(4)] == data.shapes
    with pytest.raises(ValueError, match="latents are encoded already; give --flip to `asdm cache`"):
        latents.open_data("train", 64, str(tmp_path / "c"), Selection(flip=True))
    half = latents.open_data("held_out", 64, str(tmp_path / "c"), Selection(hold_out=0.5))
    rest = latents.open_data("train", 64, str(tmp_path / "c"), Selection(hold_out=0.5))
    assert sorted(half.captions + rest.captions) == [f"number {n}" for n in range(4)]


@pytest.mark.parametrize(
    ("line", "caption", "why"),
    [
        ('{"file_name": "0.png", "text": null, "caption": "x"}', None, "a caption that is null"),
        ('{"file_name": "0.png", "text": NaN}', None, "a caption that is null"),
        ('{"file_name": "0.png", "text": ["a dog", "a cat"]}', None, "a caption that is not text"),
        ('{"file_name": "0.png", "text": true}', None, "a caption that is not text"),
        ('{"file_name": "0.png", "text": "caf\udce9"}', None, "a line that is not UTF-8"),
        ('{"file_name": "0.png", "text": 7}', "7", None),
        ('{"file_name": "0.png", "text": "one\u2028two"}', "one\u2028two", None),
        ('\ufeff{"file_name": "0.png", "text": "after a mark"}', "after a mark", None),
    ],
)
def test_every_type_and_encoding_of_a_caption_has_a_rule(
    tmp_path: Path, line: str, caption: str | None, why: str | None
) -> None:
    """Beside a line that is right: one line never refuses the others."""
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    text = f'{line}\n{{"file_name": "1.png", "text": "right"}}\n'
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    data = folder.open_data("train", 16, str(tmp_path))
    assert data.captions == ((caption, "right") if caption else ("right",))
    assert data.left_out.counts == ({why: 1} if why else {})


def test_a_mark_and_other_encodings_in_captions_and_csv(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    (tmp_path / "0.TXT").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    (tmp_path / "1.txt").write_bytes("café".encode("latin-1"))
    data = folder.open_data("train", 16, str(tmp_path))
    assert (data.captions, data.left_out.counts) == (("a cat",), {"a caption that is not UTF-8": 1})
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n0.png,café\n1.png,cat\n".encode("latin-1"))
    data = folder.open_data("train", 16, str(tmp_path))
    assert (data.captions, data.left_out.counts) == (("cat",), {"a line that is not UTF-8": 1})


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("content", [EPS, b"P6 16 16 255\n" + bytes(768)], ids=["EPS", "PPM"])
def test_only_formats_of_pictures_are_decoded_whatever_a_file_is_called(content: bytes) -> None:
    """An EPS would start Ghostscript."""
    with pytest.raises(datasets.BrokenExample, match="not a picture"):
        decode_picture(content, Frame.of(16, Selection()))


@pytest.mark.parametrize("error", [TypeError, RuntimeError, AttributeError, struct.error])
def test_whatever_a_decoder_raises_makes_a_broken_example(monkeypatch: Any, error: type[Exception]) -> None:
    def raises(_: Any) -> None:
        raise error("as Pillow does for broken EXIF")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", raises)
    with pytest.raises(datasets.BrokenExample, match="a truncated or damaged picture"):
        decode_picture(picture(1), Frame.of(16, Selection()))


@pytest.mark.parametrize("count", [2, 10])
def test_one_broken_shard_never_ends_the_reading(tmp_path: Path, count: int) -> None:
    """Though a lane may meet it alone, pass after pass."""
    for n in range(count):
        shard(tmp_path / f"{n:05d}.tar", range(6 * n, 6 * n + 6))
    (tmp_path / "00001.tar").write_text("<html>503</html>")
    data = webdataset.open_data("train", 16, str(tmp_path))
    batches = loader.batches(data, 8, 0, loader.Share(), 0, {}, 2)
    seen = {slot.example.caption for _, batch in zip(range(30), batches, strict=False) for slot in batch.slots}
    assert seen == {f"number {n}" for n in range(6 * count) if n not in range(6, 12)}


def tar_of(path: Path, *names: str) -> webdataset.Shards:
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            content = picture(number) if name.endswith(".png") else f"caption {number}".encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return webdataset.Shards((str(path),), 16)


def test_a_file_that_comes_twice_begins_another_example(tmp_path: Path) -> None:
    data = tar_of(tmp_path / "twice.tar", "a.png", "a.txt", "a.png", "a.txt")
    assert sorted(example.caption for example in first_pass(data)) == ["caption 1", "caption 3"]


def test_captions_after_all_pictures_are_named_as_the_reason(tmp_path: Path) -> None:
    data = tar_of(tmp_path / "order.tar", "a.png", "b.png", "a.txt", "b.txt", "c.png", "c.txt")
    assert [example.caption for example in first_pass(data)] == ["caption 5"]
    apart = "a caption that is not beside its picture in the shard, which must be sorted by name"
    assert data.left_out.counts == {"no caption": 2, apart: 2}


def test_what_takes_too_much_memory_is_refused_or_left_out(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(webdataset, "MOST_PARTS", 3)
    data = tar_of(tmp_path / "many.tar", "a.png", "a.txt", *(f"b.{n}.txt" for n in range(5)))
    assert [example.caption for example in first_pass(data)] == ["caption 1"]
    (reason,) = data.left_out.counts
    assert reason == "files of more than 256 MiB, or more than 3 of them"
    monkeypatch.setattr(webdataset, "MOST_BYTES", 1)
    with pytest.raises(ValueError, match=r"none of the shards .* files of more than 0 MiB"):
        next(webdataset.Shards((str(tmp_path / "many.tar"),), 16).read(0, 0, {}))
    with pytest.raises(ValueError, match=r"names more than 1,000,000 shards; name those that there are"):
        webdataset.open_data("train", 16, "x/{0..99999999999}.tar")


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / "own" / split).mkdir(parents=True)
        (tmp_path / "own" / split / "a.png").write_bytes(picture(1))
    assert len(folder.open_data("validation", 16, str(tmp_path / "own"))) == 1
    for split in ("vaildation", "test"):
        with pytest.raises(ValueError, match=f"has no split '{split}'; choose from train, validation"):
            folder.open_data(split, 16, str(tmp_path / "own"))
        with pytest.raises(ValueError, match=f"has no split '{split}'; choose from train, held_out"):
            folder.open_data(split, 16, str(tmp_path / "own" / "train"))
        with pytest.raises(ValueError, match=f"has no split '{split}'; choose from train, held_out"):
            webdataset.open_data(split, 16, str(tar_of(tmp_path / "a.tar", "a.png", "a.txt").shards[0]))


def test_what_is_to_be_held_out_is_there_or_the_folder_is_named_of_which_to_keep_some(tmp_path: Path) -> None:
    (tmp_path / "own" / "train").mkdir(parents=True)
    for i in range(20):
        (tmp_path / "own" / "train" / f"{i}.png").write_bytes(picture(1))
    with pytest.raises(ValueError, match=r"no folder held_out beside train; name (folder:\S+), of which") as caught:
        folder.open_data("held_out", 16, str(tmp_path / "own"), Selection(hold_out=0.5))
    offered = str(caught.value).partition("name folder:")[2].partition(",")[0]
    parts = [folder.open_data(split, 16, offered, Selection(hold_out=0.5)) for split in ("train", "held_out")]
    assert sum(map(len, parts)) == 20
    assert min(map(len, parts)) > 0
    with pytest.raises(ValueError, match=r"has no picture in the split held_out; raise --hold-out\."):
        folder.open_data("held_out", 16, offered, Selection(hold_out=1e-9))
    with pytest.raises(ValueError, match=r"has no picture in the split train; lower --hold-out\."):
        folder.open_data("train", 16, offered, Selection(hold_out=1 - 1e-9))


def test_folders_of_systems_are_no_data_and_names_are_taken_as_they_are(tmp_path: Path) -> None:
    for place in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "mine"):
        (tmp_path / "d" / place).mkdir(parents=True)
        (tmp_path / "d" / place / "a.png").write_bytes(picture(1))
        (tmp_path / "d" / place / "a.txt").write_text(place)
    assert folder.open_data("train", 16, str(tmp_path / "d")).captions == ("mine",)
    name = str(tmp_path / "a,b[1].tar")
    assert tar_of(Path(name), "a.png", "a.txt").shards == webdataset.open_data("train", 16, name).shards
