"""A tiny real UNet with Stable Diffusion 1.5's block types, and what the tests need to run it."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

import asdm.cli
import asdm_prof.cli
from asdm.models.execution import RANDOM
from asdm.models.families import Family, load_family
from asdm.models.families._parts import STABLE_DIFFUSION_UNET, STABLE_DIFFUSION_VAE
from asdm.models.loading import materialise, meta_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm_prof.profiler import roofline
from tests.commands import Result
from tests.pictures import cached, photos, shards, sources  # noqa: F401  (fixtures)

torch.set_num_threads(1)  # nothing here is large, and test runs beside each other would fight over the cores

TINY: dict[str, Any] = STABLE_DIFFUSION_UNET | {
    "block_out_channels": [32, 64, 64, 64],
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "sample_size": 16,
}
# Changes to TINY: one down block with attention, one without, one layer each, so that a graph is exported in seconds.
SMALL: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}
SMALLEST = SMALL | {
    "block_out_channels": [32],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "mid_block_type": None,
}
TINY_FAMILY = Family(name="tiny", title="A tiny Stable Diffusion", size=16 * 8, unet=TINY)
TINY_TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
TINY_WHOLE = replace(
    TINY_FAMILY,
    tokens=16,
    vae=STABLE_DIFFUSION_VAE | {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4},
    text_encoders=(TINY_TEXT_ENCODER,),
)


@pytest.fixture(autouse=True, scope="session")
def one_table_of_onnx_operators() -> Iterator[None]:
    """torch reads its table of operators anew for every graph that it exports, which a tiny graph waits for longest."""
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        once = cache(_registration.ONNXRegistry.from_torchlib)
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(once))
        yield


@pytest.fixture(autouse=True, scope="session")
def peaks_at_a_glance() -> None:
    """No test is about the peaks' values."""
    roofline.SECONDS_EACH = 0.01
    roofline.GEMM, roofline.CONV_CHANNELS, roofline.CONV_SIZE = 128, 16, 16
    roofline.CALLS, roofline.TRIAD_BYTES = 10, 1 << 20


def make_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """The tiny UNet with some of its config changed."""
    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(TINY | changes).eval()


def unet_args(
    batch: int = 1, height: int = 16, width: int = 16, tokens: int = 7, device: str = "cpu"
) -> dict[str, Any]:
    """Arguments of one call of the tiny UNet, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, 4, height, width, generator=generator).to(device),
        "timestep": torch.tensor([7.0]).to(device),
        "encoder_hidden_states": torch.randn(batch, tokens, 32, generator=generator).to(device),
        "return_dict": False,
    }


@torch.no_grad()
def run(unet: nn.Module, **sizes: Any) -> torch.Tensor:
    return unet(**unet_args(**sizes))[0]


def hooks_on(module: nn.Module) -> dict[str, int]:
    """Number of forward hooks and pre-hooks of every submodule that has some."""
    counts = {name: len(part._forward_hooks) + len(part._forward_pre_hooks) for name, part in module.named_modules()}
    return {name: n for name, n in counts.items() if n}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests cache stays theirs; the workers of one run share it."""
    run = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASDM_CACHE", str((run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "cache"))
        yield


@pytest.fixture(scope="session")
def _tiny() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def tiny_unet(_tiny: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet of one's own to operate on: 38 units, 3.2 M parameters, 16×16 latents."""
    return _copied(_tiny)


def _copied(module: nn.Module) -> Any:
    """A deep copy, for a module without state beside its tensors and submodules: six times as fast as `deepcopy`."""
    copied = type(module).__new__(type(module))
    own = vars(copied)
    for name, value in vars(module).items():
        own[name] = value.copy() if type(value) in (dict, OrderedDict, set) else value
    for name, parameter in module.named_parameters(recurse=False):
        own["_parameters"][name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    for name, child in module.named_children():
        own["_modules"][name] = _copied(child)
    assert not module._buffers
    return copied


@pytest.fixture
def nothing_left_hooked(tiny_unet: UNet2DConditionModel) -> Iterator[None]:
    """The tiny UNet has as many hooks after the test as before it."""
    before = hooks_on(tiny_unet)
    yield
    assert hooks_on(tiny_unet) == before


@pytest.fixture(scope="session")
def tiny_folder(_tiny: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny UNet as diffusers saves it."""
    folder = tmp_path_factory.mktemp("tiny") / "unet"
    _tiny.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Stable Diffusion of two levels and 64×64 pixels with random weights, as diffusers saves it: a teacher."""
    changes = SMALL | {"block_out_channels": [16, 32], "layers_per_block": 2}
    return _whole(changes, tmp_path_factory.mktemp("pipeline") / "teacher")


@pytest.fixture(scope="session")
def smallest_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a UNet of one level, whose graphs are exported in seconds."""
    return _whole(
        SMALLEST | {"up_block_types": ["CrossAttnUpBlock2D"]}, tmp_path_factory.mktemp("smallest") / "teacher"
    )


def _whole(changes: dict[str, Any], folder: Path) -> Path:
    family = replace(TINY_WHOLE, size=64, unet=TINY | changes | {"sample_size": 8})
    unet = materialise(meta_unet(family), seed=1)
    pipeline(family, unet, Setup(weights=RANDOM, seed=1)).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def sd15_meta() -> nn.Module:
    """Stable Diffusion 1.5's UNet, shapes only."""
    return meta_unet(load_family("sd15"))


@pytest.fixture(name="run")
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run `asdm` or `asdm-prof` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    commands = {"asdm": asdm.cli.main, "asdm-prof": asdm_prof.cli.main}

    def call(*words: str | Path) -> Result:
        program, *args = map(str, words)
        monkeypatch.setattr(sys, "argv", [program, *args])
        with pytest.raises(SystemExit) as caught:
            commands[program]()
        return Result(int(caught.value.code or 0), *capfd.readouterr())

    return call
