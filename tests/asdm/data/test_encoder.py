"""How pictures and captions are encoded: in chunks that fit, in bits that no neighbour changes, by several threads."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asdm.data import cache
from asdm.data.datasets import Encoded, Example, folder
from asdm.data.encoder import PARTS, Encoder, chunk_size
from asdm.data.loader import Slot
from asdm.data.settings import CacheSettings
from asdm.evaluate.generation import decode_latents
from asdm.models.execution import RANDOM
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.records.latents import Shard
from tests.tiny import SMALL, TINY_WHOLE, make_unet

DRAWN = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in range(6)]


@pytest.fixture
def whole() -> Any:
    return pipeline(replace(TINY_WHOLE, size=64), None, Setup(weights=RANDOM, seed=1))


def slots(*numbers: int, indexed: bool = True) -> list[Slot]:
    return [Slot(i, Example(DRAWN[n], f"picture {n}"), n if indexed else None) for i, n in enumerate(numbers)]


def watched(encoder: Encoder) -> tuple[list[int], list[int]]:
    """The sizes of the batches that go through the VAE and through the text encoder, filled as they do."""
    pictures: list[int] = []
    captions: list[int] = []
    encoder.vae.encoder.register_forward_hook(lambda module, args, out: pictures.append(len(args[0])))
    encoder.text.register_forward_hook(lambda module, args, out: captions.append(len(out[0])))
    return pictures, captions


def alike(one: Encoded, other: Encoded) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


def test_on_a_cpu_an_example_with_an_index_is_encoded_by_itself_and_once(whole: Any) -> None:
    encoder, alone = Encoder(whole), Encoder(whole)
    pictures, captions = watched(encoder)
    first = encoder.encode(slots(0, 1, 0, 2))
    assert (pictures, captions) == ([1] * 3, [1] * 3)
    again = encoder.encode(slots(2, 1, 3))
    assert (pictures, captions) == ([1] * 4, [1] * 4)
    assert alike(first[0], first[2])
    for found, number in ((first[3], 2), (again[0], 2), (again[1], 1), (again[2], 3)):
        assert alike(found, alone.encode(slots(number))[0])


def test_on_an_accelerator_every_call_has_one_shape_and_neighbours_change_no_bit(whole: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Encoder, "on_accelerator", True)
    encoder, other = Encoder(whole, chunk=8, row=4), Encoder(whole, chunk=8, row=4)
    pictures, captions = watched(encoder)
    found = encoder.encode(slots(0, 1, 2, 3, 4))
    assert (pictures, captions) == ([4, 4], [4, 4])
    for one, number in zip(found, range(5), strict=True):
        assert alike(one, other.encode(slots(5, number))[1])


def test_a_stream_is_encoded_in_chunks(whole: Any) -> None:
    encoder = Encoder(whole, chunk=2)
    pictures, _ = watched(encoder)
    encoder.encode(slots(0, 1, 2, 3, 4, indexed=False))
    assert pictures == [2, 2, 1]
    assert (chunk_size(64, None), chunk_size(512, None), chunk_size(512, 2), chunk_size(4096, 2)) == (512, 8, 2, 1)


def test_what_was_encoded_before_goes_to_the_device_together(whole: Any) -> None:
    encoder = Encoder(whole)
    halves = [Encoded(*(torch.full((1,), n).half() for _ in PARTS), caption=f"{n}") for n in range(3)]
    collated = encoder.collate([Slot(i, example, i) for i, example in enumerate(halves)])
    assert [tensor.shape for tensor in collated.encoded.values()] == [(3, 1)] * 3
    found = encoder.encode(collated)
    assert [(float(one.mean), one.mean.dtype, one.caption) for one in found] == [
        (n, torch.float32, f"{n}") for n in range(3)
    ]
    assert encoder.encode([]) == []


# ---------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize(("demand", "dtype"), [(True, torch.float32), (False, torch.float16), (None, torch.float16)])
def test_a_vae_that_overflows_in_fp16_computes_in_fp32(demand: bool | None, dtype: torch.dtype) -> None:
    """`None`: the config does not say, as those of Stable Diffusion 1 and 2."""
    assert TINY_WHOLE.vae is not None
    more = {} if demand is None else {"force_upcast": demand}
    family = replace(TINY_WHOLE, vae=TINY_WHOLE.vae | more)
    vae = pipeline(family, None, Setup(weights=RANDOM, dtype="fp16")).vae
    assert vae.dtype is dtype
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e4)
        image = decode_latents(vae, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half())
        vae.encode(torch.zeros(1, 3, 64, 64, dtype=torch.float16))
    assert bool(image.isfinite().all()) == (demand is True)


@pytest.mark.parametrize("finite", [True, False])
def test_a_pipeline_that_knows_nothing_of_it_draws_with_such_a_vae(finite: bool) -> None:
    """Stable Diffusion 1's decodes what it has; the decoder overflows in fp16."""
    assert TINY_WHOLE.vae is not None
    family = replace(TINY_WHOLE, size=64, vae=TINY_WHOLE.vae | {"force_upcast": finite})
    pipe = pipeline(family, make_unet(**SMALL).half(), Setup(weights=RANDOM, dtype="fp16"))
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(1e4)
    image = pipe("a cat", num_inference_steps=1, output_type="pt", height=64, width=64).images
    assert bool(image.isfinite().all()) == finite


def test_encoders_move_to_half_precision_and_their_hash_is_of_the_full_one(whole: Any) -> None:
    whole.vae.register_to_config(force_upcast=True, _use_default_values=[])
    encoder = Encoder(whole)
    encoder.to_dtype(torch.float16)
    assert encoder.text.dtype is torch.float16
    assert encoder.vae.dtype is torch.float32
    mean, _ = encoder.moments(DRAWN[0][None])
    assert mean.dtype is torch.float32


def test_sdxls_own_vae_demands_fp32_and_is_timed_in_it() -> None:
    from asdm.models.components import components_of

    for name, upcast in (("sdxl", True), ("sd15", False)):
        (decoder,) = (part for part in components_of(load_family(name)) if part.name == "vae_decoder")
        assert decoder.fp32_in_fp16 == upcast


# ---------------------------------------------------------------------------------------------- threads


def test_a_cache_decodes_pictures_beside_each_other(tmp_path: Path, tiny_pipeline: Path, monkeypatch: Any) -> None:
    """Each picture waits until another thread decodes one as well."""
    both = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(folder.Folder, "example", lambda self, i: (both.wait() and None) or Example(DRAWN[i], f"{i}"))
    monkeypatch.setattr(folder.Folder, "__len__", lambda self: 4)
    four = folder.Folder([], [f"{i}" for i in range(4)], 64)
    monkeypatch.setattr(folder, "open_data", lambda split, size, source: four)
    told: list[Any] = []
    settings = CacheSettings(dtype="fp32", workers=2)
    done = cache.cache_latents(
        "folder:x", str(tiny_pipeline), tmp_path / "c", settings, lambda *line: told.append(line)
    )
    assert [caption for shard in done.shards for caption in shard.captions] == ["0", "1", "2", "3"]
    assert told[-1][0] == "encoding"


def test_a_caches_time_left_follows_from_its_pace(monkeypatch: Any) -> None:
    now = iter((0.0, 3.0))
    monkeypatch.setattr(cache.time, "monotonic", lambda: next(now))
    told: list[Any] = []
    tell = cache._with_time_left(lambda *line: told.append(line), SimpleNamespace(next_index=10, examples=100))
    tell("encoding", 10, None)
    tell("encoding", 40, None)
    assert told == [("encoding", 10, None), ("encoding", 40, 6.0)]


def test_two_do_not_cache_into_one_folder(tmp_path: Path, tiny_pipeline: Path, monkeypatch: Any) -> None:
    line = ("emoji", str(tiny_pipeline), tmp_path / "c", CacheSettings(dtype="fp32", split="held_out", per_shard=4))
    tries: list[str] = []

    def add(folder: Path, manifest: Any, *_: Any) -> Any:
        """While the first process is at its first shard, a second one is started."""
        if not tries:
            tries.append("second")
            with pytest.raises(ValueError, match="c is being written by another process; wait for it"):
                cache.cache_latents(*line)
        shard = Shard(file="latents-00000.safetensors", bytes=1, captions=("a heart",))
        return manifest.model_copy(update={"next_index": manifest.examples, "shards": (shard,)})

    monkeypatch.setattr(cache, "_add_shard", add)
    cache.cache_latents(*line)
    assert tries == ["second"]
