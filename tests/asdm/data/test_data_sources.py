"""Folders, tar shards, cached latents: what is broken, where a stopped run goes on, and which process gets what."""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from asdm.data import cache, datasets, loader
from asdm.data.datasets import BrokenExample, folder, latents, webdataset
from asdm.data.datasets._pictures import Frame, decode_picture
from asdm.data.datasets.prompts import read_prompts
from asdm.data.settings import CacheSettings, Selection
from asdm.records.latents import LatentCache
from tests.pictures import picture, shard

# ---------------------------------------------------------------------------------------------- folder


def test_captions_beside_pictures_do_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "b.png").write_bytes(picture(2))  # no caption: not a member
    data = folder.open_data("train", 16, str(tmp_path))
    assert data.captions == ("a cat",)
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "Left out 1 example, no caption: b.png." in data.left_out.lines()
    with pytest.raises(BrokenExample, match=r"a\.png: not a picture"):
        data[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "a.png"}', r"can be used: left out 1 example, no caption: metadata\.jsonl:1 \(a"),
        ('{"text": "a cat"}', r"no file_name: metadata\.jsonl:1\."),
        ("{", r"a line that is not a JSON object: metadata\.jsonl:1\."),
    ],
)
def test_a_table_without_any_usable_line_is_an_error_that_names_them(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=said):
        folder.open_data("train", 16, str(tmp_path))


def test_pictures_are_cut_square_upright_and_on_white() -> None:
    wide = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    wide.paste((0, 0, 0, 0), (0, 0, 20, 20))
    stream = io.BytesIO()
    wide.save(stream, "PNG")
    image, time_ids = decode_picture(stream.getvalue(), Frame.of(10, Selection()))
    assert time_ids == (20, 40, 0, 5, 10, 10)
    assert image.shape == (3, 10, 10)
    assert image[:, 5, 1].tolist() == [1, 1, 1]
    assert image[:, 5, 8].tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "needs a folder: folder:DIR"),
        ("folder:nowhere", "nowhere is not a folder"),
        ("webdataset", "needs shards"),
        ("webdataset:no-{00..02}.tar", r"the shard no-00\.tar, no-01\.tar, no-02\.tar does not exist"),
        ("webdataset:s3://bucket/a.tar", "neither a file nor an http"),
        ("latents", "needs a folder that `asdm cache` wrote"),
        ("latents:nowhere", "nowhere is not a cache of latents"),
        ("prompts:nowhere", "nowhere does not exist; prompts:FILE takes a text file with a prompt a line"),
        ("emoji:here", "has its own pictures; leave out 'here'"),
        ("tar:x", "unknown name 'tar' in datasets; choose from emoji, folder, latents, prompts, webdataset"),
    ],
)
def test_what_is_not_there_is_named(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        datasets.open_source(name, "train", 64)


def test_a_prompt_ends_at_a_line_feed_and_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\u2028on a mat\x0b\n\na dog\r\n", encoding="utf-8")
    assert read_prompts(str(file)) == ["a cat\u2028on a mat", "a dog"]
    file.write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.txt is not text in UTF-8; prompts:FILE takes"):
        read_prompts(str(file))
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(ValueError, match="is not a file; prompts:FILE takes"):
            read_prompts(str(tmp_path / name))


# ---------------------------------------------------------------------------------------------- webdataset


def captions(data: Any, count: int, seed: int = 0, lane: int = 0, place: dict[str, int] | None = None) -> list[str]:
    return [example.caption for example, _ in itertools.islice(data.read(seed, lane, place or {}), count)]


def test_every_lane_shuffles_its_own_shards_and_together_they_are_everything(shards: Path) -> None:
    data = webdataset.open_data("train", 16, str(shards))
    assert data.lanes == 4
    passes = [captions(data, 10, lane=lane) for lane in range(4)]
    assert sorted(itertools.chain(*passes)) == sorted(f"number {n}" for n in range(40))
    assert captions(data, 10) != sorted(captions(data, 10))
    assert captions(data, 10) == captions(data, 10) != captions(data, 10, seed=1)


@pytest.mark.parametrize("stop", [1, 6, 7, 13, 29])
def test_a_lane_goes_on_where_it_stopped(shards: Path, stop: int) -> None:
    data = webdataset.Shards(tuple(map(str, sorted(shards.iterdir()))), 16, block=7, most_lanes=1)
    whole = captions(data, 90)
    assert [sorted(whole[i : i + 40]) for i in (0, 40)] == [sorted(f"number {n}" for n in range(40))] * 2
    *_, (_, place) = itertools.islice(data.read(0, 0, {}), stop)
    assert captions(data, 90 - stop, place=json.loads(json.dumps(place))) == whole[stop:]


def test_what_is_broken_is_left_out_counted_and_named(tmp_path: Path, capsys: Any) -> None:
    shard(tmp_path / "a.tar", range(10), broken=(3, 4))
    shard(tmp_path / "b.tar", range(10, 20), cut=True)
    (tmp_path / "c.tar").write_bytes(b"no tar at all")
    (tmp_path / "d.tar").write_bytes(b"\x1f\x8b\x08")  # tarfile takes the ord() of nothing
    data = webdataset.Shards(tuple(str(tmp_path / f"{n}.tar") for n in "abcd"), 16, most_lanes=1)
    found = list(itertools.islice(data.read(0, 0, {}), 26))
    first = [example.caption for example, _ in found[:14]]
    assert set(first) == {f"number {n}" for n in (0, 1, 2, 5, 6, 7, 8, 9, *range(10, 16))}
    said = capsys.readouterr().err
    assert f"the shard {tmp_path}/b.tar is broken after 6 examples: it has no end-of-archive mark." in said
    assert f"the shard {tmp_path}/c.tar is broken after 0 examples" in said
    assert f"the shard {tmp_path}/d.tar is broken after 0 examples: it is not a whole tar archive" in said
    assert said.count("b.tar is broken") == 1
    assert said.count("Left out a.tar:") == 2
    place = found[-1][1]
    assert place["skipped"] == {"not a picture": 2, webdataset.BROKEN_SHARD: 3}  # of the first pass
    assert {reason: sorted(names) for reason, names in place["names"].items()} == {
        "not a picture": ["a.tar:000000003", "a.tar:000000004"],
        webdataset.BROKEN_SHARD: ["b.tar", "c.tar", "d.tar"],
    }


def test_shards_without_any_example_are_an_error_not_a_loop(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(3), broken=(0, 1, 2))
    with pytest.raises(ValueError, match=r"none of the shards .*a\.tar has a picture with a caption"):
        next(webdataset.open_data("train", 16, str(tmp_path)).read(0, 0, {}))


def test_shards_come_by_url_too(shards: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with served(functools.partial(Quiet, directory=shards)) as address:
        data = webdataset.open_data("train", 16, f"{address}/{{00000..00001}}.tar,{address}/gone.tar")
        assert len(data.shards) == 3
        found = [captions(data, 10, lane=lane) for lane in range(2)]
    assert set(itertools.chain(*found)) == {f"number {n}" for n in range(20)}


@contextmanager
def served(handler: Any) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("how", ["chunked", "with a length"])
def test_a_connection_that_breaks_off_is_a_broken_shard_and_called_so(shards: Path, capsys: Any, how: str) -> None:
    content = (shards / "00000.tar").read_bytes()
    half = content[: len(content) // 2]

    class BreaksOff(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            if how == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(half), half))
            else:
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(half)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with served(BreaksOff) as address:
        data = webdataset.open_data("train", 16, f"{address}/a shard.tar")
        assert sorted(captions(data, 6)) == [f"number {n}" for n in range(6)]
    assert f"{address}/a shard.tar is broken after 6 examples: the connection broke off." in capsys.readouterr().err
    assert data.left_out.counts == {webdataset.BROKEN_SHARD: 1}


def test_an_address_that_is_none_is_a_broken_shard(capsys: Any) -> None:
    data = webdataset.open_data("train", 16, "http://[::1/a.tar")
    with pytest.raises(ValueError, match="none of the shards"):
        next(data.read(0, 0, {}))
    assert "its address is not a URL." in capsys.readouterr().err


def test_names_of_shards_expand() -> None:
    assert webdataset._expanded("http://x/{08..10}.tar") == ["http://x/08.tar", "http://x/09.tar", "http://x/10.tar"]
    assert webdataset._split("a{1..2}.tar,b.tar") == ["a{1..2}.tar", "b.tar"]


# ---------------------------------------------------------------------------------------------- feed


def fed(data: Any, world: int, steps: int, batch: int = 4, step: int = 0, place: Any = None) -> list[list[str]]:
    """Captions of each step's whole batch, put together from all processes."""
    sources = [loader.batches(data, batch, 7, loader.Share(rank, world), step, place or {}, 2) for rank in range(world)]
    rows = []
    for _ in range(steps):
        slots = sorted((slot for source in sources for slot in next(source).slots), key=lambda slot: slot.position)
        assert [slot.position for slot in slots] == list(range(batch))
        rows.append([slot.example.caption for slot in slots])
    return rows


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_batch_is_the_same_however_many_processes_share_it(kind: str, sources: dict[str, str]) -> None:
    data = datasets.open_source(f"{kind}:{sources[kind]}", "train", 16)
    one = fed(data, 1, 12)
    assert one == fed(data, 2, 12) == fed(data, 4, 12)
    assert len({caption for row in one for caption in row}) >= 12


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_feed_goes_on_at_the_step_where_it_stopped(kind: str, sources: dict[str, str]) -> None:
    data = datasets.open_source(f"{kind}:{sources[kind]}", "train", 16)
    source = loader.batches(data, 6, 7, loader.Share(), 0, {}, 2)
    rows = [next(source) for _ in range(9)]
    again = loader.batches(data, 6, 7, loader.Share(), 4, json.loads(json.dumps(rows[3].place)), 2)
    for row in rows[4:]:
        assert [s.example.caption for s in next(again).slots] == [s.example.caption for s in row.slots]


def test_a_broken_picture_gives_its_place_to_the_next_and_is_counted(photos: Path, tmp_path: Path) -> None:
    data = spoilt(photos, tmp_path)
    batch = next(loader.batches(data, 12, 0, loader.Share(), 0, {}, 2))
    shown = [slot.example.caption for slot in batch.slots]
    assert loader.left_out_by(batch.place)[0]["not a picture"] == 1
    assert shown.count("number 6") == 2
    assert "number 5" not in shown


def spoilt(photos: Path, root: Path) -> folder.Folder:
    """The photos with one that is no picture, and one that their table does not name."""
    for file in photos.iterdir():
        (root / file.name).write_bytes(b"no picture" if file.name == "5.png" else file.read_bytes())
    (root / "new.png").write_bytes(picture(1))
    return folder.open_data("train", 16, str(root))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_examples_are_counted_once_however_many_processes_read_them_and_stop(
    photos: Path, tmp_path: Path, capsys: Any, kind: str
) -> None:
    data: Any = spoilt(photos, tmp_path)
    broken = {"a picture that metadata.jsonl does not name": ["new.png"], "not a picture": [str(tmp_path / "5.png")]}
    paths = ["one folder"]
    if kind == "shards":
        paths = [str(shard(tmp_path / f"{n}.tar", range(6 * n, 6 * n + 6), broken=(8 * n,))) for n in range(2)]
        data, broken = webdataset.Shards(tuple(paths), 16), {"not a picture": ["0.tar:000000000", "1.tar:000000008"]}
    place: dict[str, Any] = {}
    for step in (0, 5, 10):  # three calls of five steps, of two processes and one of all
        shares = [loader.Share()] if step == 5 else [loader.Share(rank, 2) for rank in range(2)]
        sources = [loader.batches(data, 4, 7, share, step, loader.own_part(place, share), 2) for share in shares]
        batches = [next(source) for _ in range(5) for source in sources]
        place = json.loads(json.dumps(loader.merged([batch.place for batch in batches[-len(shares) :]])))
    counts, names = loader.left_out_by(place)
    assert counts == {reason: len(some) for reason, some in broken.items()}
    assert {reason: sorted(some) for reason, some in names.items()} == broken
    said = capsys.readouterr().err
    assert [said.count(f"Left out {name}: not a picture.") for name in broken["not a picture"]] == [1] * len(paths)


def test_each_picture_is_met_first_at_one_place() -> None:
    mirrored = loader.Orders(14, 0)
    assert sum(mirrored.is_first(place, 7) for place in range(40)) == 7
    filled_up = loader.BucketOrders([(8, 8)] * 3 + [(8, 16)] * 4, 4, 0)
    assert filled_up.length == 8
    assert sum(filled_up.is_first(place, 7) for place in range(40)) == 7


def test_what_a_benchmark_leaves_out_is_said(photos: Path, tmp_path: Path, capsys: Any) -> None:
    data = spoilt(photos, tmp_path)
    assert len(list(loader.usable(loader.readers(data, range(12)), 20))) == 11
    assert f"Left out 1 example, not a picture: {tmp_path}/5.png." in capsys.readouterr().err


def test_captions_are_those_of_examples_that_can_be_read() -> None:
    class Own(datasets.Indexed[datasets.Example]):
        def __len__(self) -> int:
            return 4

        def example(self, index: int) -> datasets.Example:
            if index == 0:
                raise BrokenExample("gone")
            return datasets.Example(torch.zeros(3, 8, 8), f"number {index}")

    assert datasets.captions_of(Own(), 2) == ["number 1", "number 2"]


def test_too_many_processes_for_the_shards_are_refused(shards: Path) -> None:
    data = webdataset.open_data("train", 16, str(shards))
    with pytest.raises(ValueError, match="4 lanes of shards cannot be split between 3 processes"):
        next(loader.batches(data, 6, 0, loader.Share(0, 3), 0, {}, 2))


def test_reading_ahead_hands_on_items_and_errors_in_order() -> None:
    def items() -> Any:
        yield 1
        yield 2
        raise ValueError("the disk is gone")

    with loader.ahead(items()) as take:
        assert (take(), take()) == (1, 2)
        with pytest.raises(ValueError, match="the disk is gone"):
            take()
    with loader.ahead(itertools.count()) as take:  # left early: the thread ends with the block
        assert take() == 0
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(work)") and thread.is_alive()]


# ---------------------------------------------------------------------------------------------- latents


def test_a_cache_holds_what_the_encoders_make_and_goes_on_after_a_stop(
    photos: Path, cached: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def tell(what: str, done: int, _: Any) -> None:
        if done >= 5:
            raise Stop

    line = (f"folder:{photos}", str(tiny_pipeline), tmp_path / "again", CacheSettings(dtype="fp32", per_shard=5))
    with pytest.raises(Stop):
        cache.cache_latents(*line, tell=tell)
    with pytest.raises(ValueError, match=r"is not finished \(5 of 12 examples\)"):
        latents.open_data("train", 64, str(tmp_path / "again"))
    for name in ("7.png", "metadata.jsonl"):  # of the same sizes
        before = (photos / name).read_bytes()
        (photos / name).write_bytes(before[:-4] + b"9" + before[-3:])
        with pytest.raises(
            ValueError, match=r"was encoded from other data: the pictures or captions of folder:.* chang"
        ):
            cache.cache_latents(*line)
        (photos / name).write_bytes(before)
    cache.cache_latents(f"folder:{photos}/.", *line[1:])
    for name in ("cache.json", "latents-00000.safetensors", "latents-00002.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (cached / name).read_bytes()
    data = latents.open_data("train", 64, str(cached))
    assert len(data) == 12
    assert data[11].caption == "number 11"
    assert torch.equal(data[6].mean, data[5:8][1].mean)


def test_a_cache_of_other_encoders_or_another_size_is_refused(photos: Path, cached: Path, tiny_pipeline: Path) -> None:
    with pytest.raises(ValueError, match="holds latents of 64 pixels, not 32; name latents of 32 pixels, or --size 64"):
        latents.open_data("train", 32, str(cached))
    with pytest.raises(ValueError, match="holds another cache: its dtype is fp32, not fp16"):
        cache.cache_latents(f"folder:{photos}", str(tiny_pipeline), cached, CacheSettings())
    record = LatentCache.load(cached / "cache.json")
    assert record.encoder_sha256


def test_a_lost_shard_is_named(photos: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "latents"
    cache.cache_latents(f"folder:{photos}", str(tiny_pipeline), output, CacheSettings(dtype="fp32", per_shard=6))
    (output / "latents-00001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"latents-00001\.safetensors is missing or damaged"):
        latents.open_data("train", 64, str(output))


def test_a_flipped_bit_of_cached_latents_is_named_when_its_shard_is_first_read(cached: Path, tmp_path: Path) -> None:
    shutil.copytree(cached, tmp_path / "latents")
    file = tmp_path / "latents" / "latents-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    data = latents.open_data("train", 64, str(tmp_path / "latents"))
    assert data[4].caption == "number 4"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"latents-00001\.safetensors is damaged: its bytes are not those"):
            data[5]
    manifest = json.loads((tmp_path / "latents" / "cache.json").read_text())
    for one in manifest["shards"]:  # as earlier versions wrote it
        del one["sha256"]
    (tmp_path / "latents" / "cache.json").write_text(json.dumps(manifest))
    assert latents.open_data("train", 64, str(tmp_path / "latents"))[5].caption == "number 5"


def test_training_takes_every_source(tiny_pipeline: Path, sources: dict[str, str], tmp_path: Path) -> None:
    from tests.asdm.distill.training import go, log_of

    losses = {}
    for kind in ("folder", "webdataset", "latents"):
        go(tiny_pipeline, tmp_path / kind, data=f"{kind}:{sources[kind]}", split="train", steps=2)
        losses[kind] = log_of(tmp_path / kind)[0]["loss"]
    assert losses["latents"] == pytest.approx(losses["folder"], rel=1e-4)  # the same pictures, encoded before


def test_a_cache_of_another_teacher_does_not_train_this_one(run: Any, sources: dict[str, str], tmp_path: Path) -> None:
    done = run("asdm", "distill", "a_sdm", "--teacher", "mini", "--data", f"latents:{sources['latents']}",
               "--size", 64, "-o", "s")  # fmt: skip
    assert done.code == 2
    assert "was not encoded with mini's encoders; run asdm cache with --teacher mini" in done.err
    assert not (tmp_path / "s").exists()


def test_the_cache_command_as_typed(run: Any, photos: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    done = run("asdm", "cache", f"folder:{photos}", "--teacher", tiny_pipeline, "-o", "latents")
    assert done.code == 0, done.err
    assert done.out.strip() == "12 examples in 1 shards. Train on them with --data latents:latents"
    refused = run("asdm", "cache", "webdataset:x.tar", "--teacher", tiny_pipeline, "-o", "other")
    assert refused.code == 2
