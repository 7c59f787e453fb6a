"""The memory that training is said to need: counted on the meta device, compared with what torch really saves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from asdm.distill import memory, recipes, run
from asdm.distill.dry_run import preview_stage
from asdm.distill.memory import MetaAutocast, saved_bytes
from asdm.distill.stages import resolve_recipe
from asdm.measure import machine
from asdm.models.families import load_family
from asdm.unet import blocks
from tests.asdm.distill.training import go, settings
from tests.tiny import SMALL, make_unet, unet_args


def on_gpu(dtype: str = "fp16") -> MetaAutocast:
    return MetaAutocast(settings(device="cuda", dtype=dtype))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("trained", ["all", "shallow"])
def test_the_count_is_what_torch_saves(dtype: str, trained: str) -> None:
    """On a CPU, of the UNet as a whole and of one whose shallow blocks alone are trained."""
    unet, meta = make_unet(**SMALL), make_unet(**SMALL).to("meta")
    for one in (unet, meta):
        for name, block in blocks.iter_blocks(one):
            block.requires_grad_(trained == "all" or name in ("down_blocks.0", "up_blocks.1"))
    args: dict[str, Any] = unet_args(batch=4)
    shapes = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in args.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        real = saved_bytes(lambda: unet(**args), unet)
    counted = saved_bytes(lambda: meta(**shapes), meta, MetaAutocast(settings(dtype=dtype)))
    assert counted == pytest.approx(real, rel=0.06)


def test_autocast_on_a_gpu_keeps_norms_in_fp32_and_casts_of_weights() -> None:
    """Conv → norm → SiLU → conv of 8 channels and 64 pixels, in bytes that the backward needs."""
    net = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 8, 1, bias=False))
    net, x = net.to("meta"), torch.empty(1, 8, 8, 8, device="meta", requires_grad=True)
    pixels, weight, statistics = 8 * 64, 8 * 8, 4 * 2
    convolutions = 2 * 2 * (pixels + weight)  # each keeps its input and its weight in half precision
    norm_and_activation = 4 * (pixels + pixels) + 4 * statistics
    assert saved_bytes(lambda: net(x), net, on_gpu()) == convolutions + norm_and_activation
    assert saved_bytes(lambda: net(x), net, on_gpu("fp32")) == 4 * 2 * pixels + norm_and_activation
    frozen = net.requires_grad_(False)  # its weights are in half precision before the call
    assert saved_bytes(lambda: frozen(x), frozen, on_gpu()) == 2 * 2 * pixels + norm_and_activation


def test_attention_saves_no_scores() -> None:
    query = torch.empty(1, 2, 64, 4, device="meta", requires_grad=True)
    net = nn.Identity()
    saved = saved_bytes(lambda: nn.functional.scaled_dot_product_attention(query, query, query), net, on_gpu("fp32"))
    assert saved == 4 * 2 * 64 * (4 + 4 + 1)  # one tensor for query, key and value; the output; a number per query


def test_a_stage_is_counted_in_the_precision_and_the_processes_that_train_it(
    tiny_pipeline: Path, monkeypatch: Any
) -> None:
    """Stage 2 on one CPU, and in fp16 on two GPUs: buckets for gradients, and all but norms in half precision."""
    monkeypatch.setattr("asdm.distill.stages.check_settings", lambda _: None)
    cpu, gpu = settings(batch=8), settings(batch=8, device="cuda", dtype="fp16")
    recipe = resolve_recipe("a_sdm", str(tiny_pipeline), cpu, recipes.without_incubation)
    plain, halved = (preview_stage(recipe, recipe.stages[0], *how) for how in ((cpu,), (gpu, 2)))
    trained = plain.audit.trainable.bytes
    assert (plain.memory.gradients, halved.memory.gradients) == (trained, 2 * trained)
    assert 0.49 < (halved.memory.weights - trained) / (plain.memory.weights - trained) < 0.53
    assert halved.memory.encoders < plain.memory.encoders
    assert plain.memory.total - plain.memory.peak == sum(
        getattr(plain.memory, name) for name in ("weights", "encoders", "gradients", "optimizer", "average")
    )


def test_encoding_is_counted_by_the_chunk(tiny_pipeline: Path) -> None:
    family = load_family(str(tiny_pipeline))
    encoders = memory._encoders(family, None)
    whole, small = (memory._encoding_bytes(encoders, family, settings(batch=8, micro_batch=n), 1) for n in (None, 2))
    assert 3.5 < whole / small < 4.5  # the VAE's largest maps, of 8 pictures or of 2


def test_a_run_that_does_not_fit_is_refused_before_anything_is_loaded(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda device: 2**20)
    monkeypatch.setattr(run, "load_context", lambda *_: pytest.fail("was loaded"))
    message = (
        r"training the stage compressed needs about 0\.0 GiB on cpu, 0\.0 GiB of them for 4 pictures a forward, and "
        r"0\.0 GiB are free; choose a smaller --micro-batch or --gradient-checkpointing or .*a smaller --size, or free"
    )
    with pytest.raises(ValueError, match=message):
        go(tiny_pipeline, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_what_surely_fits_is_not_counted(tiny_pipeline: Path, monkeypatch: Any) -> None:
    recipe = resolve_recipe("a_sdm", str(tiny_pipeline), settings(), recipes.without_incubation)
    for free, expected in ((2**22, ["combined"]), (64 * 2**30, [])):
        counted: list[str] = []

        def count(recipe: Any, stage: Any, *more: Any, counted: list[str] = counted) -> Any:
            counted.append(stage.name)
            return SimpleNamespace(memory=SimpleNamespace(total=2**20))

        monkeypatch.setattr(machine, "free_memory_bytes", lambda device, free=free: free)
        memory.check_memory(recipe, recipe.stages, settings(), 1, count)
        assert counted == expected
