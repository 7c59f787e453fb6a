"""How a run computes on a GPU, as far as a CPU can show it: half precision of what is frozen, compiled units, flags."""

import copy
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from asdm.distill import context, precision
from asdm.distill.phases import COMPUTE, DATA, ENCODE, REST, StepPhases
from asdm.distill.precision import compiled_units, frozen_dtype, frozen_in, torch_settings
from asdm.distill.setup import make_optimizer
from asdm.measure.clocks import FakeClock
from tests.asdm.distill.training import settings
from tests.tiny import SMALL, make_unet, unet_args


def halves() -> tuple[Any, Any]:
    """A frozen teacher, and a student that trains its last block and shares the rest."""
    teacher = make_unet(**SMALL).requires_grad_(False)
    student = copy.deepcopy(teacher, {id(p): p for p in teacher.parameters()})
    student.up_blocks[-1] = copy.deepcopy(teacher.up_blocks[-1], {}).requires_grad_(True)
    return teacher, student


def test_frozen_weights_in_half_precision_change_no_result_and_come_back() -> None:
    teacher, student = halves()
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    args = unet_args(batch=2)

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return [unet(**args)[0] for unet in (teacher, student)]

    expected = outputs()
    with frozen_in(torch.bfloat16, teacher, student):
        assert all(torch.equal(mine, yours) for mine, yours in zip(outputs(), expected, strict=True))
        assert teacher.conv_in.weight.dtype is student.conv_in.weight.dtype is torch.bfloat16
        assert teacher.conv_in.weight.data_ptr() == student.conv_in.weight.data_ptr(), "what is shared stays shared"
        assert teacher.up_blocks[-1].resnets[0].conv1.weight.dtype is torch.bfloat16
        trained = [p for p in student.parameters() if p.requires_grad]
        norms = [m.weight for m in teacher.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
        assert {p.dtype for p in trained + norms} == {torch.float32}
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert teacher.conv_in.weight.data_ptr() == student.conv_in.weight.data_ptr()


def test_a_frozen_weight_that_changed_meanwhile_is_an_error() -> None:
    teacher, student = halves()
    with pytest.raises(RuntimeError, match="frozen tensor was written to"), frozen_in(torch.float16, teacher, student):
        teacher.conv_in.weight.data[0, 0] += 1


def test_only_accelerators_freeze_in_half_precision() -> None:
    assert frozen_dtype(settings(dtype="bf16")) is None
    assert frozen_dtype(settings(dtype="fp32", device="cuda")) is None
    assert frozen_dtype(settings(dtype="fp16", device="cuda:1")) is torch.float16


def test_units_are_compiled_one_by_one_without_those_that_are_looked_into(monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "COMPILE", {"backend": "eager", "dynamic": False})
    unet, args = make_unet(**SMALL), unet_args()
    looked_into = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    with torch.no_grad():
        expected = unet(**args)[0]
        with torch_settings(settings(compile=True)), compiled_units((unet, [looked_into, "up_blocks.1"])) as count:
            compiled = [name for name, module in unet.named_modules() if module._compiled_call_impl is not None]
            torch.testing.assert_close(unet(**args)[0], expected)
    assert count == len(compiled) == 11
    assert not [name for name in compiled if name.startswith("down_blocks.0.attentions.0")]
    assert all(module._compiled_call_impl is None for module in unet.modules())


def test_a_run_sets_torch_and_puts_it_back(monkeypatch: Any) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def now() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(), cudnn.deterministic,
            cudnn.benchmark,
        )  # fmt: skip

    before = now()
    with torch_settings(settings(deterministic=True, device="cuda")):
        assert now() == ("high", True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with torch_settings(settings()):
        assert now() == before
    assert now() == before
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_the_optimizer_is_one_kernel_on_a_gpu(monkeypatch: Any) -> None:
    chosen = []
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, **arguments: chosen.append(arguments["fused"]))
    for device in ("cuda", "cpu"):
        make_optimizer([SimpleNamespace(device=torch.device(device))], settings())  # type: ignore[list-item]
    assert chosen == [True, None]


def test_a_device_with_an_index_becomes_the_current_one(monkeypatch: Any) -> None:
    import accelerate

    chosen: list[Any] = []
    monkeypatch.setattr(context, "use_device", chosen.append)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **arguments: chosen.append(arguments["cpu"]))
    context.make_accelerator(settings(device="cuda:1"))
    assert chosen == ["cuda:1", False], "before accelerate takes it"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="so --device must be cuda, got cuda:1"):
        context.make_accelerator(settings(device="cuda:1"))


def test_phases_add_up_and_are_read_a_step_late() -> None:
    clock = FakeClock()
    phases = StepPhases(clock)
    for _ in range(2):
        for phase, seconds in ((DATA, 1.0), (ENCODE, 2.0), (COMPUTE, 4.0)):
            phases.enter(phase)
            clock.advance(seconds)
        phases.end_step()
        clock.advance(0.5)
    assert phases.seconds == {DATA: 1.0, ENCODE: 2.0, COMPUTE: 4.0, REST: 0.5}
    phases.enter(DATA)
    phases.finish()
    assert phases.seconds == {DATA: 2.0, ENCODE: 4.0, COMPUTE: 8.0, REST: 1.0}
    assert phases.shares()[COMPUTE] == 8 / 15
