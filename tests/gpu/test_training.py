"""On a GPU: runs that are killed and resumed, frozen weights in half precision, memory, and what an OOM leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from asdm.distill import recipes
from asdm.distill.dry_run import preview
from asdm.evaluate import quality
from asdm.evaluate.benchmark import bench
from asdm.evaluate.settings import BenchSettings
from asdm.utils.record import read_json
from tests.asdm.distill.training import WEIGHTS, Stop, go, log_of, settings, stop_after

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_deterministic_run_that_stopped_ends_with_the_same_bits(
    tiny_pipeline: Path, tmp_path: Path, dtype: str
) -> None:
    """Within a stage, and where one ends and the next begins: fp16's loss scale goes on too."""
    more: dict[str, Any] = {"device": "cuda", "dtype": dtype, "deterministic": True}
    whole = go(tiny_pipeline, tmp_path / "whole", **more)
    for at in ((2, "compressed"), (1, "combined")):
        with pytest.raises(Stop):
            go(tiny_pipeline, tmp_path / "stopped", on_progress=stop_after(*at), **more)
    stopped = go(tiny_pipeline, tmp_path / "stopped", **more)
    assert (tmp_path / "stopped" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert [stage.scaler for stage in stopped.stages] == [stage.scaler for stage in whole.stages]
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


@pytest.mark.parametrize("data", ["emoji", "latents"])
def test_half_precision_trains_as_fp32_does_and_leaves_the_teacher_alone(
    tiny_pipeline: Path, tmp_path: Path, cached: Path, data: str
) -> None:
    source = {"emoji": {"data": "emoji"}, "latents": {"data": f"latents:{cached}", "split": "train"}}[data]
    logs = {}
    for dtype in ("fp32", "fp16"):
        go(tiny_pipeline, tmp_path / dtype, device="cuda", dtype=dtype, **source)
        logs[dtype] = log_of(tmp_path / dtype)
    for mine, yours in zip(logs["fp16"], logs["fp32"], strict=True):
        assert mine["denoising"] == pytest.approx(yours["denoising"], rel=0.1)
    teacher = UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet").state_dict()
    student = UNet2DConditionModel.from_pretrained(tmp_path / "fp16" / "stages" / "compressed").state_dict()
    assert {tensor.dtype for tensor in student.values()} == {torch.float32}
    frozen = read_json(tmp_path / "fp16" / "build.json")["audit"]["frozen"]["names"]
    assert frozen
    assert set(frozen) <= teacher.keys()


def test_compiled_units_learn_the_same(tiny_pipeline: Path, tmp_path: Path) -> None:
    for name in ("eager", "compiled"):
        go(tiny_pipeline, tmp_path / name, device="cuda", dtype="bf16", compile=name == "compiled")
    for mine, yours in zip(log_of(tmp_path / "compiled"), log_of(tmp_path / "eager"), strict=True):
        assert mine["loss"] == pytest.approx(yours["loss"], rel=0.1)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_training_takes_the_memory_that_was_counted(tmp_path: Path, dtype: str) -> None:
    """The mini's first stage; its perceptual network and kernels' workspaces are not counted."""
    chosen = settings(device="cuda", dtype=dtype, batch=32, steps=2)
    (stage,) = preview("bk_sdm_small", "mini", chosen, recipes.bk_sdm)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    go(Path("mini"), tmp_path / "s", "bk_sdm_small", recipes.bk_sdm, device="cuda", dtype=dtype, batch=32, steps=2)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(stage.memory.total, rel=0.25)


def test_running_out_of_memory_while_judging_keeps_the_times(tiny_pipeline: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(quality, "generate_images", lambda *_, **__: torch.empty(2**50, device="cuda"))
    quick = BenchSettings(device="cuda", steps=2, min_rounds=2, guided_rounds=2, time_budget_s=0.5, size=64)
    found = bench(str(tiny_pipeline), ["a_sdm"], BenchSettings(**vars(quick) | {"quality": True, "pictures": 4}))
    assert "quality" in found.out_of_memory
    assert found.students[0].unet_latency_ratio.median > 0
    assert found.students[0].quality == {}
