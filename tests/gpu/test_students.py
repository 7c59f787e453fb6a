"""On a GPU: the forward of every preset waits for nothing, goes into a graph and takes channels_last."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from asdm.models import student as students
from asdm.plan.presets import PRESETS
from asdm.unet.replacements.cond_conv import fold
from tests.asdm.unet.test_replacements import open_gates
from tests.tiny import make_unet, unet_args

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
TOLERANCE = {"rtol": 2e-2, "atol": 2e-3}  # TF32 convolutions


def built(preset: str) -> Any:
    """A preset's student of the tiny UNet on the GPU; `folded` is the one with timestep gates, folded for three."""
    teacher = make_unet()
    name = "a_sdm_clme_timestep" if preset == "folded" else preset
    student = open_gates(students.build(teacher, students.read_plan(name, teacher, "tiny"))[0]).cuda()
    return fold(student, [981, 500, 21]) if preset == "folded" else student


def guided_call(timestep: torch.Tensor) -> dict[str, Any]:
    return unet_args(batch=2, device="cuda") | {"timestep": timestep.cuda()}


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=[*PRESETS, "folded"])
def student(request: pytest.FixtureRequest) -> Any:
    return built(request.param)


@torch.no_grad()
def test_a_forward_waits_for_nothing(student: Any) -> None:
    for timestep in (torch.tensor(500), torch.tensor([500, 21])):
        args = guided_call(timestep)
        student(**args)  # compiles kernels, and copies a folded UNet's timesteps
        with no_waiting():
            student(**args)


@torch.no_grad()
def test_a_graph_replays_what_eager_computes(student: Any) -> None:
    args = guided_call(torch.tensor(500))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            student(**args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = student(**args)[0]
    for seed, timestep in ((1, 500), (2, 21)):
        args["sample"].copy_(torch.randn(args["sample"].shape, generator=torch.Generator().manual_seed(seed)))
        args["timestep"].fill_(timestep)
        graph.replay()
        torch.testing.assert_close(out, student(**args)[0], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_channels_last_computes_the_same(student: Any, dtype: torch.dtype) -> None:
    student.to(dtype)
    args = {n: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for n, x in guided_call(torch.tensor(500)).items()}  # fmt: skip
    expected = student(**args)[0]
    student.to(memory_format=torch.channels_last)
    args["sample"] = args["sample"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(student(**args)[0], expected, rtol=5e-2, atol=2e-2)
