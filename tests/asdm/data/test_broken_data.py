"""Shards and folders in the ways in which real ones are broken: what is used, and why the rest is not.

tests/fixtures/data is described in its README.md.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

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
    assert done.first_skipped == {reason: (f"shard-00000.tar:{name}",) for reason, (name,) in LEFT_OUT.items()}
    assert len(latents.open_data("train", 64, str(tmp_path / "c"))) == 9


def test_a_cache_counts_each_picture_once_and_says_which(run: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    """Those without a caption too, which opening the folder leaves out, and those that come mirrored as well."""
    for n, content in enumerate((picture(0), b"no picture", picture(2))):
        (tmp_path / f"{n}.png").write_bytes(content)
        (tmp_path / f"{n}.txt").write_text(f"number {n}")
    (tmp_path / "2.txt").unlink()
    done = run("asdm", "cache", f"folder:{tmp_path}", "--teacher", tiny_pipeline, "--flip", "-o", tmp_path / "c")
    assert done.code == 0, done.err
    assert f"(2 left out: 1 with no caption (2.png); 1 with not a picture ({tmp_path}/1.png))" in done.out
    assert f"Left out {tmp_path}/1.png: not a picture." in done.err
    assert latents.LatentCache.load(tmp_path / "c" / "cache.json").skipped == 2
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b\x08")
    none = run("asdm", "cache", f"webdataset:{tmp_path}/a.tar.gz", "--teacher", tiny_pipeline, "-o", tmp_path / "none")
    assert none.code == 2
    assert f"a.tar.gz has no example that can be used. Left out 1 example, {webdataset.BROKEN_SHARD}: a" in none.err


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
    assert loader.left_out_by(batch.place) == (
        {"a side of fewer than 32 pixels": 1},
        {"a side of fewer than 32 pixels": [str(tmp_path / "0.png")]},
    )


def test_buckets_keep_shapes_and_a_batch_has_one(tmp_path: Path) -> None:
    shapes = bucket_shapes(512)
    assert (512, 512) in shapes
    assert {side % 64 for shape in shapes for side in shape} == {0}
    assert all(0.7 * 512**2 < h * w <= 512**2 and max(h, w) <= 2 * min(h, w) for h, w in shapes)
    assert len({w / h for h, w in shapes}) == len(shapes)
    for height, width, shape in ((1440, 3440, (320, 640)), (1000, 1920, (320, 640)), (2160, 1080, (640, 320))):
        assert Frame(shapes).shape_for(height, width) == shape
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
    with pytest.raises(ValueError, match="has no split 'trian'; choose from train, held_out"):
        latents.open_data("trian", 64, str(tmp_path / "c"), Selection(hold_out=0.5))


def test_a_picture_and_its_mirror_image_are_held_out_together(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(12):
        (tmp_path / "photos" / f"{n}.png").write_bytes(picture(n, (24, 24)))
        (tmp_path / "photos" / f"{n}.txt").write_text(f"number {n}")
    settings = CacheSettings(flip=True)
    cache.cache_latents(f"folder:{tmp_path / 'photos'}", str(tiny_pipeline), tmp_path / "c", settings)
    parts = [
        latents.open_data(split, 64, str(tmp_path / "c"), Selection(hold_out=0.5)) for split in ("train", "held_out")
    ]
    train, held_out = (sorted(part.captions) for part in parts)
    assert 0 < len(train) < 24
    assert len(train) + len(held_out) == 24
    assert not {*train} & {*held_out}
    for text in (tmp_path / "photos").glob("*.txt"):
        text.unlink()
    cache.cache_latents(f"folder:{tmp_path / 'photos'}", str(tiny_pipeline), tmp_path / "d", settings)
    with pytest.raises(ValueError, match="/d has mirror images, and pictures without captions"):
        latents.open_data("train", 64, str(tmp_path / "d"), Selection(hold_out=0.5))


@pytest.mark.parametrize(
    ("line", "caption", "why"),
    [
        ('{"file_name": "0.png", "text": null, "caption": "x"}', None, "a caption that is null"),
        ('{"file_name": "0.png", "text": NaN}', None, "a caption that is null"),
        ('{"file_name": "0.png", "text": ["a dog", "a cat"]}', None, "a caption that is not text"),
        ('{"file_name": "0.png", "text": true}', None, "a caption that is not text"),
        ('{"file_name": "0.png", "text": Infinity}', None, "a caption that is not text"),
        ('{"file_name": "0.png", "text": -1e999}', None, "a caption that is not text"),
        ('{"file_name": "0.png", "text": "half of \\ud83d"}', None, "a line that is not UTF-8"),
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


@pytest.mark.parametrize(
    ("column", "captions", "left_out"),
    [
        (["a", None], ("a",), {"a caption that is null": 1}),
        ([7, None], ("7",), {"a caption that is null": 1}),  # which pandas makes 7.0 and NaN
        ([1.5, float("inf")], ("1.5",), {"a caption that is not text": 1}),
        ([True, False], (), {"a caption that is not text": 2}),
        ([["a dog", "a cat"], None], (), {"a caption that is not text": 1, "a caption that is null": 1}),
        ([b"a", b"b"], (), {"a caption that is not text": 2}),
    ],
)
def test_the_rule_of_each_type_holds_in_parquet(
    tmp_path: Path, column: list[Any], captions: tuple[str, ...], left_out: dict[str, int]
) -> None:
    """Beside a table's own rows: one that names no file, of pandas' nullable type, and one that is right."""
    pytest.importorskip("pyarrow")
    import pandas as pd

    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    names = pd.array(["0.png", "1.png", pd.NA], dtype="string")
    table = pd.DataFrame({"file_name": names, "text": pd.Series([*column, column[0]], dtype=object)})
    table.to_parquet(tmp_path / "metadata.parquet")
    counts = {**left_out, "no file_name": 1}
    if captions:
        data = folder.open_data("train", 16, str(tmp_path))
        assert (data.captions, data.left_out.counts) == (captions, counts)
    else:
        with pytest.raises(ValueError, match=r"a caption that is not text: metadata\.parquet:1 \(0\.png\)"):
            folder.open_data("train", 16, str(tmp_path))


def test_a_text_in_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    texts = pyarrow.array(["café".encode("latin-1"), b"right"]).view("string")
    parquet.write_table(pyarrow.table({"file_name": ["0.png", "1.png"], "text": texts}), tmp_path / "metadata.parquet")
    data = folder.open_data("train", 16, str(tmp_path))
    assert data.captions == ("right",)
    assert data.left_out.names == {"a line that is not UTF-8": ["metadata.parquet:1"]}


def test_a_damaged_table_beside_a_shard_costs_only_what_it_alone_had(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table")
    data = tar_of(tmp_path / "a.tar", "a.png", "a.txt", "b.png")
    assert [example.caption for example in first_pass(data)] == ["caption 1"]
    assert data.left_out.names == {"no caption, and a table beside its shard that cannot be read": ["a.tar:b"]}
    said = capsys.readouterr().err
    assert f"Warning: captions and scores beside {tmp_path}/a.tar are not used: {tmp_path}/a.parquet is not" in said


def test_scores_that_are_no_number_are_none(tmp_path: Path) -> None:
    for n, score in enumerate(("7", "Infinity", "NaN", "1" + "0" * 400, "[7]", '"high"')):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        (tmp_path / f"{n}.json").write_text(f'{{"text": "number {n}", "aesthetic": {score}}}')
    data = folder.open_data("train", 16, str(tmp_path), Selection(min_aesthetic=5))
    assert (data.captions, data.left_out.counts) == (("number 0",), {"no aesthetic score": 5})


def test_a_mark_and_other_encodings_in_captions_and_csv(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    (tmp_path / "0.TXT").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    (tmp_path / "1.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "2.png").write_bytes(picture(2))
    (tmp_path / "2.json").write_text('{"text": "half of \\ud83d"}')
    data = folder.open_data("train", 16, str(tmp_path))
    assert (data.captions, data.left_out.counts) == (("a cat",), {"a caption that is not UTF-8": 2})
    (tmp_path / "2.png").unlink()
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


def test_fifos_links_to_nothing_and_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    for make in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "gone")):
        make(tmp_path / "metadata.jsonl")
        with pytest.raises(ValueError, match=r"metadata\.jsonl is not a file; a table of captions is one\."):
            folder.open_data("train", 16, str(tmp_path))
        (tmp_path / "metadata.jsonl").unlink()
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"the shard \S+a\.tar is not a file\."):
        webdataset.open_data("train", 16, str(tmp_path / "a.tar"))
    monkeypatch.setattr("asdm.data.datasets._metadata.MOST_BYTES", 10)
    (tmp_path / "a.txt").write_text("a caption that is too long")
    with pytest.raises(ValueError, match=r"can be used: left out 1 example, a file of more than 0 MiB: a\.png\."):
        folder.open_data("train", 16, str(tmp_path))


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_every_format_that_is_decoded_is_found_by_its_suffix(tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.linear_gradient("L").resize((20, 16)).convert("RGB").save(tmp_path / f"a.{kind.lower()}", kind)
    (tmp_path / "a.txt").write_text("a grey ramp")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in (tmp_path / f"a.{kind.lower()}", tmp_path / "a.txt"):
            tar.add(file, file.name)
    (example,) = first_pass(webdataset.Shards((str(tmp_path / "a.tar"),), 16))
    assert torch.equal(example.image, folder.open_data("train", 16, str(tmp_path))[0].image)
    assert example.image.max() > 0.8


def test_what_is_not_read_of_a_folder_and_of_a_shard_is_counted(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", "._a.png", "c.heic"):
        (tmp_path / name).write_bytes(picture(1))
    reasons = {
        "a hidden file": 1, "a file of macOS, not a picture": 1, "a picture of a format that is not decoded": 1,
    }  # fmt: skip
    assert folder.open_data("train", 16, str(tmp_path)).left_out.counts == reasons
    (tmp_path / "a.txt").write_text("a cat")
    assert folder.open_data("train", 16, str(tmp_path)).left_out.counts == reasons
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    named = "a picture that metadata.jsonl does not name"
    assert folder.open_data("train", 16, str(tmp_path)).left_out.names == {named: ["c.heic"]}
    shards = tar_of(tmp_path / "a.tar", ".b.png", ".c.png", "._a.png", "a.png", "a.txt", "c.heic")
    assert len(first_pass(shards)) == 1
    assert shards.left_out.counts == reasons | {"a hidden file": 2}


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
    for split in ("", ".", "..", "../own"):
        with pytest.raises(ValueError, match=r"has no split '[./own]*'; choose from train, validation"):
            folder.open_data(split, 16, str(tmp_path / "own"))
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=rf"no folder held_out beside train, validation; name folder:\S+/{split},"):
            folder.open_data(split, 16, str(tmp_path / "own"), Selection(hold_out=0.5))


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
