"""Folders, tar shards, cached latents: what is broken, where a stopped run goes on, and which process gets what."""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from asdm.data import cache, datasets, loader
from asdm.data.datasets import BrokenExample, folder, latents, webdataset
from asdm.data.datasets._pictures import Frame, decode_picture
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
        ("emoji:here", "has its own pictures; leave out 'here'"),
        ("tar:x", "unknown name 'tar' in datasets; choose from emoji, folder, latents, prompts, webdataset"),
    ],
)
def test_what_is_not_there_is_named(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        datasets.open_source(name, "train", 64)


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
    data = webdataset.Shards(tuple(str(tmp_path / f"{n}.tar") for n in "abc"), 16, most_lanes=1)
    found = list(itertools.islice(data.read(0, 0, {}), 26))
    first = [example.caption for example, _ in found[:14]]
    assert set(first) == {f"number {n}" for n in (0, 1, 2, 5, 6, 7, 8, 9, *range(10, 16))}
    said = capsys.readouterr().err
    assert f"the shard {tmp_path}/b.tar is broken after 6 examples: it has no end-of-archive mark." in said
    assert f"the shard {tmp_path}/c.tar is broken after 0 examples" in said
    assert said.count("b.tar is broken") == 1
    assert found[-1][1]["skipped"] == {"not a picture": 2, webdataset.BROKEN_SHARD: 2}  # of the first pass


def test_shards_without_any_example_are_an_error_not_a_loop(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(3), broken=(0, 1, 2))
    with pytest.raises(ValueError, match=r"none of the shards .*a\.tar has a picture with a caption"):
        next(webdataset.open_data("train", 16, str(tmp_path)).read(0, 0, {}))


def test_shards_come_by_url_too(shards: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=shards)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        data = webdataset.open_data("train", 16, f"{address}/{{00000..00001}}.tar,{address}/gone.tar")
        assert len(data.shards) == 3
        found = [captions(data, 10, lane=lane) for lane in range(2)]
        server.shutdown()
    assert set(itertools.chain(*found)) == {f"number {n}" for n in range(20)}


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
    for file in photos.iterdir():
        (tmp_path / file.name).write_bytes(b"no picture" if file.name == "5.png" else file.read_bytes())
    data = folder.open_data("train", 16, str(tmp_path))
    batch = next(loader.batches(data, 12, 0, loader.Share(), 0, {}, 2))
    shown = [slot.example.caption for slot in batch.slots]
    assert batch.skipped == {"not a picture": 1}
    assert shown.count("number 6") == 2
    assert "number 5" not in shown


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
    cache.cache_latents(*line)
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
