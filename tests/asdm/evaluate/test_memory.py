"""Memory of a comparison: what is asked for before it, what is measured, and what is kept where it runs out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm.evaluate import benchmark, memory
from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.settings import BenchSettings
from asdm.measure import machine
from asdm.measure.backends import eager, fake
from asdm.models.families import Family
from asdm.models.loading import meta_unet
from tests.fake_cuda import fake_cuda
from tests.tiny import TINY_FAMILY, TINY_WHOLE, make_unet

SETTINGS = BenchSettings(guidance_scale=8.0)


def needed(monkeypatch: pytest.MonkeyPatch, family: Family, settings: BenchSettings) -> int:
    """The bytes that a comparison asks for."""
    asked: list[int] = []
    monkeypatch.setattr(machine, "require_memory", lambda need, device, what: asked.append(need))
    memory.require(meta_unet(family, settings.dtype), family, [], settings, eager)
    return asked[0]


def test_what_is_not_the_unet_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    unet_alone = needed(monkeypatch, TINY_FAMILY, SETTINGS)
    decoded = needed(monkeypatch, replace(TINY_WHOLE, vae={**TINY_WHOLE.vae, "block_out_channels": [64] * 4}), SETTINGS)
    assert decoded > unet_alone + (10 << 20), "the decoder's activations are larger than this UNet's"
    drawn = needed(monkeypatch, TINY_WHOLE, replace(SETTINGS, quality=True))
    few = needed(monkeypatch, TINY_WHOLE, replace(SETTINGS, quality=True, pictures=2))
    assert drawn > few > needed(monkeypatch, TINY_WHOLE, SETTINGS)
    in_half = needed(monkeypatch, TINY_WHOLE, replace(SETTINGS, quality=True, dtype="fp16"))
    assert in_half - machine.SPARE_BYTES == pytest.approx((drawn - machine.SPARE_BYTES) / 2, rel=0.05)


def test_fewer_pictures_are_drawn_at_once_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, quality=True, pictures=100)
    most = needed(monkeypatch, TINY_WHOLE, settings)
    least = needed(monkeypatch, TINY_WHOLE, replace(settings, pictures=1))
    monkeypatch.undo()
    drawn = []
    for free in (most, (most + least) // 2, least):
        monkeypatch.setattr(machine, "free_memory_bytes", lambda _, free=free: free)
        drawn.append(memory.require(meta_unet(TINY_WHOLE), TINY_WHOLE, [], settings, eager))
    assert drawn == [16, 8, 1]
    monkeypatch.setattr(machine, "free_memory_bytes", lambda _: least - 1)
    with pytest.raises(ValueError, match=r"comparing tiny in fp32 needs about .* GiB on cpu"):
        memory.require(meta_unet(TINY_WHOLE), TINY_WHOLE, [], settings, eager)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_a_stage_without_memory_is_left_out(error: BaseException) -> None:
    lost: dict[str, str] = {}
    assert memory.unless_full("quality", lambda: 1, lost, 2) == 1
    assert memory.unless_full("quality", lambda: (_ for _ in ()).throw(error), lost, 2) == 2
    assert lost["quality"] == (str(error).splitlines() or ["out of memory"])[0]


def test_another_error_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        memory.unless_full("quality", lambda: (_ for _ in ()).throw(RuntimeError("shapes differ")), {}, 2)


def test_timings_are_kept_where_pictures_do_not_fit(
    run: Any, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*arguments: Any, **_: Any) -> list[list[float]]:
        batch = arguments[6]
        if batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [[2.0] * 4, [1.5] * 4]

    def too_large(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(benchmark, "compare_latency", compare)
    monkeypatch.setattr(benchmark, "open_judgement", lambda *_: object())
    monkeypatch.setattr(benchmark, "read_real_pictures", lambda *_: None)
    for stage in ("time_components", "judge_all"):
        monkeypatch.setattr(benchmark, stage, too_large)
    found = run(
        "asdm", "bench", "--teacher", tiny_pipeline, "--student", "a_sdm", "--quality", "--batch", "2", "-o", "b.json"
    )
    assert found.code == 0, found.err
    assert "too little memory for the quality, which is left out: CUDA out of memory." in found.err
    result = json.loads(Path("b.json").read_text())
    assert set(result["out_of_memory"]) == {"guided step", "parts of an image", "quality"}
    (student,) = result["students"]
    assert student["unet_latency_ratio"]["median"] == 0.75
    assert (student["guided_latency_ratio"], student["quality"], result["pipeline"]) == (None, {}, None)


def test_the_most_memory_of_every_unet_is_measured_on_a_gpu() -> None:
    unet = make_unet()
    everyone = [ComparedUNet(name, name, unet, unet) for name in ("teacher", "student")]
    weights = sum(4 * p.numel() for p in unet.parameters())
    with fake_cuda() as cuda, torch.inference_mode():
        on_gpu = replace(SETTINGS, device="cuda:1")
        assert memory.measured_peaks(everyone, TINY_FAMILY, on_gpu, eager) == [cuda.peak - cuda.held + weights] * 2
        assert cuda.resets == 2
    assert memory.measured_peaks(everyone, TINY_FAMILY, on_gpu, fake) == [None, None]
    assert memory.measured_peaks(everyone, TINY_FAMILY, SETTINGS, eager) == [None, None]
