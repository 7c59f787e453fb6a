"""CLME-CondConv: which kernels are experts, what the gates do, and that folding changes nothing."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F

from asdm.models import student as students
from asdm.plan.edits import PruningPlan, RemoveLayer, ReplaceUnit
from asdm.unet import blocks, flops
from asdm.unet.replacements import cond_conv
from asdm.unet.replacements.cond_conv import (
    CondConv2d,
    FoldedConv2d,
    _as_products,
    convolve,
    fold,
    replace,
    watched_gates,
)
from asdm.unet.surgery import apply_plan, resolved_on
from tests.asdm.unet.test_replacements import open_gates
from tests.tiny import make_unet, run, unet_args

PRUNED = (RemoveLayer(block="down_blocks.0", layer=1), RemoveLayer(block="up_blocks.3", layer=1))
SHALLOW = ("down_blocks.0.resnets.0", "up_blocks.3.resnets.0", "up_blocks.3.resnets.2")


def clme(gate: str = "input"):
    return [*PRUNED, *(ReplaceUnit(unit=unit, with_="cond_conv", options={"gate": gate}) for unit in SHALLOW)]


def conv_of(gate: str = "input", experts: int = 3) -> CondConv2d:
    torch.manual_seed(0)
    own, *others = (torch.nn.Conv2d(4, 6, 3, padding=1) for _ in range(experts))
    return open_gates(torch.nn.ModuleDict({"x": CondConv2d(own, others, None if gate == "input" else 5)}))["x"]


def expert_counts(unet) -> dict[str, int]:
    return {name: m.num_experts for name, m in unet.named_modules() if isinstance(m, CondConv2d)}


# ---------------------------------------------------------------------------------------------- experts


def test_shapes_decide_what_is_an_expert_of_what(sd15_meta):
    """down_blocks.0 is 320→320 four times; in up_blocks.3 conv1 is 960→320 once and 640→320 twice."""
    student, _ = students.build(sd15_meta, PruningPlan(family="sd15", edits=tuple(clme())))
    assert expert_counts(student) == {
        "down_blocks.0.resnets.0.conv1": 2,
        "down_blocks.0.resnets.0.conv2": 2,
        "up_blocks.3.resnets.0.conv2": 3,
        "up_blocks.3.resnets.1.conv1": 2,
        "up_blocks.3.resnets.1.conv2": 3,
    }


def test_experts_are_the_kernels_of_the_other_layers_the_pruned_one_among_them(tiny_unet):
    kernels = [layer.conv2.weight.clone() for layer in tiny_unet.up_blocks[3].resnets]
    before = [layer.conv2.weight for layer in tiny_unet.up_blocks[3].resnets]
    apply_plan(tiny_unet, resolved_on(tiny_unet, clme()))
    first, last = (layer.conv2 for layer in tiny_unet.up_blocks[3].resnets)
    assert first.weight is before[0]
    assert last.weight is before[2]
    assert torch.equal(first.experts, torch.stack([kernels[1], kernels[2]]))
    assert torch.equal(last.experts, torch.stack([kernels[0], kernels[1]]))


def test_a_transformer_and_a_lonely_resnet_are_not_applicable(tiny_unet):
    for fqn in ("down_blocks.0.attentions.0", "down_blocks.0.resnets.0"):
        module = tiny_unet.get_submodule(fqn)
        assert replace(module, [module]) is None


def test_an_unknown_gate_is_told_the_choices(tiny_unet):
    with pytest.raises(
        ValueError, match=r"^cannot replace up_blocks.3.resnets.0 with cond_conv \(gate output\): unknown gate 'output'"
    ):
        apply_plan(
            tiny_unet,
            resolved_on(tiny_unet, [ReplaceUnit(unit=SHALLOW[1], with_="cond_conv", options={"gate": "output"})]),
        )


# ---------------------------------------------------------------------------------------------- step 0


@pytest.mark.parametrize("gate", ["input", "timestep"])
def test_a_student_starts_exactly_as_the_pruned_teacher(tiny_unet, gate):
    pruned = make_unet()
    apply_plan(pruned, resolved_on(pruned, PRUNED))
    apply_plan(tiny_unet, resolved_on(tiny_unet, clme(gate)))
    assert torch.equal(run(tiny_unet), run(pruned))
    torch.testing.assert_close(run(tiny_unet, batch=3), run(pruned, batch=3))


@pytest.mark.parametrize("gate", ["input", "timestep"])
def test_gates_learn_from_the_first_step_and_experts_from_the_second(tiny_unet, gate):
    apply_plan(tiny_unet, resolved_on(tiny_unet, clme(gate)))
    found = {name: p for name, p in tiny_unet.named_parameters() if "routing" in name or "experts" in name}

    def step() -> dict[str, float]:
        tiny_unet.zero_grad()
        tiny_unet(**unet_args(batch=2))[0].square().mean().backward()
        gradients = {name: float(p.grad.abs().sum()) for name, p in found.items()}
        with torch.no_grad():
            for parameter in found.values():
                parameter -= 0.1 * parameter.grad
        return gradients

    first, second = step(), step()
    assert [name for name, size in first.items() if "routing" in name and not size > 0] == []
    assert {size for name, size in first.items() if "experts" in name} == {0.0}
    assert [name for name, size in second.items() if not size > 0] == []


# ---------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_sum_of_its_experts_convolutions_under_the_gates(batch):
    """Convolution is linear in its kernel, so mixing kernels is mixing outputs."""
    conv = conv_of()
    x = torch.randn(batch, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gates = conv.opened(x.mean(dim=(2, 3))) + torch.eye(3)[0]
        outputs = [F.conv2d(x, kernel, padding=1) for kernel in [conv.weight, *conv.experts]]
        expected = sum(g.view(-1, 1, 1, 1) * out for g, out in zip(gates.unbind(1), outputs, strict=True))
        torch.testing.assert_close(conv(x), expected + conv.bias.view(-1, 1, 1))
    assert gates.shape == (batch, 3)
    assert (gates[:, 0] > 0).all()
    assert (gates[:, 1:].abs() < 1).all()


def test_images_of_a_batch_are_gated_apart():
    """The two halves of classifier-free guidance do not see each other."""
    conv = conv_of()
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(conv(x), torch.cat([conv(x[:1]), conv(x[1:])]))
        gates = conv.opened(x.mean(dim=(2, 3))) + torch.eye(3)[0]
    assert not torch.allclose(gates[0], gates[1])


def test_large_images_go_through_a_resnet_one_by_one(tiny_unet, monkeypatch):
    """Where each has kernels of its own; with a time embedding each, or one for all."""
    monkeypatch.setattr(cond_conv, "LARGE", 0)
    apply_plan(tiny_unet, resolved_on(tiny_unet, clme()))
    open_gates(tiny_unet)
    unit, sizes = tiny_unet.down_blocks[0].resnets[0], []
    unit.norm1.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    torch.manual_seed(1)
    x, time = torch.randn(3, unit.in_channels, 8, 6), torch.randn(3, unit.time_emb_proj.in_features)
    with torch.no_grad():
        for times in (time, time[:1]):
            together = unit(x, times)
            assert sizes == [1, 1, 1]
            sizes.clear()
            alone = [unit(x[i : i + 1], times[i : i + 1] if len(times) > 1 else times) for i in range(3)]
            assert torch.equal(together, torch.cat(alone))
            sizes.clear()
    torch.testing.assert_close(unit(x, time[:1]), together)
    assert sizes == [3], "training takes them together"
    sizes.clear()
    with torch.no_grad():
        unit.to("meta")(x.to("meta"), time.to("meta"))
        assert sizes == [3], "other devices take them together"
        monkeypatch.undo()
        sizes.clear()
        tiny_unet.up_blocks[3].resnets[0].norm1.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
        other = tiny_unet.up_blocks[3].resnets[0]
        other(torch.randn(3, other.in_channels, 8, 6), time)
        assert sizes == [3], "so do small images"


def test_a_timestep_gate_mixes_one_kernel_for_the_batch_where_timesteps_agree(tiny_unet):
    apply_plan(tiny_unet, resolved_on(tiny_unet, clme("timestep")))
    open_gates(tiny_unet)
    conv, seen = tiny_unet.down_blocks[0].resnets[0].conv1, []
    opened = conv.opened
    conv.opened = lambda time: seen.append(time.shape[0]) or opened(time)
    args = unet_args(batch=3)
    with torch.no_grad():
        alike = tiny_unet(**args)[0]
        apart = tiny_unet(**args | {"timestep": torch.tensor([7.0, 7.0, 900.0])})[0]
        last = tiny_unet(**args | {"timestep": torch.tensor([900.0])})[0]
    assert seen == [1, 3, 1]
    torch.testing.assert_close(apart, torch.cat([alike[:2], last[2:]]), rtol=1e-4, atol=1e-5)
    assert conv.time is None


def test_a_timestep_gate_by_itself_says_what_it_lacks():
    with pytest.raises(ValueError, match="needs a time embedding"):
        conv_of("timestep")(torch.zeros(1, 4, 3, 3))


def test_mixing_is_counted_and_costs_next_to_nothing(sd15_meta):
    """A kernel of 320·320·9 numbers per foreign expert and image, beside 64·64 times as much in the convolution."""
    own, *others = (layer.conv2 for layer in sd15_meta.up_blocks[3].resnets)
    conv, b, n = CondConv2d(own, others), 2, 64
    counted = flops.count(conv, (torch.empty(b, 320, n, n, device="meta"),), {})
    kernel = 320 * 320 * 9
    assert counted.total.conv_macs == b * kernel * n * n
    assert counted.total.linear_macs == b * 320 * 3 + b * 2 * kernel
    assert counted.uncounted_ops == {}


def test_inference_keeps_memory_for_one_kernel_and_results_outlive_it(monkeypatch):
    """The next call's kernel, another layer's and another dtype's take the same place: no output may change."""
    conv, other = conv_of(), conv_of().bfloat16()
    x = torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    for order in ((torch.no_grad, torch.inference_mode), (torch.inference_mode, torch.no_grad)):
        monkeypatch.setattr(cond_conv, "_kept", cond_conv._Kept())
        for mode in order:
            with mode():
                out = conv(x)
                before, place = out.clone(), cond_conv._kept.memory.data_ptr()
                other(x.bfloat16())
                conv(x + 1)
            assert torch.equal(out, before)
            assert cond_conv._kept.memory.data_ptr() == place
    assert torch.equal(conv(x), before), "training computes the same"
    place = cond_conv._kept.memory.clone()
    conv(x + 2).sum().backward()
    assert all(p.grad is not None for p in conv.parameters())
    assert torch.equal(cond_conv._kept.memory, place), "and keeps nothing there"


def test_threads_do_not_share_the_memory_of_a_kernel():
    conv, x = conv_of(), torch.randn(1, 4, 333, 333)
    with torch.no_grad():
        expected = conv(x)
    wrong = []

    def work() -> None:
        with torch.no_grad():
            wrong.extend(i for i in range(20) if not torch.equal(conv(x), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_training_and_inference_compute_the_same():
    conv = conv_of()
    x = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = conv(x)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2, "bias": False}], ids=str
)
def test_products_of_patches_are_the_convolution(geometry):
    """What an exported graph with a free batch computes, at any geometry."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, 3, **geometry)
    x, kernels = torch.randn(3, 4, 9, 7), torch.randn(3, *conv.weight.shape)
    torch.testing.assert_close(_as_products(conv, x, kernels), convolve(conv, x, kernels))


def test_watched_gates_are_the_mean_distance_from_their_start():
    net = torch.nn.ModuleDict({"a": conv_of(), "b": torch.nn.Conv2d(4, 6, 3)})
    x = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), watched_gates(net) as opened:
        net["a"](x)
        expected = net["a"].opened(x.mean(dim=(2, 3))).abs().mean(0)
    assert list(opened) == ["a"]
    assert opened["a"] == pytest.approx(expected.tolist(), abs=1e-6)
    net["a"](2 * x)
    assert opened["a"] == pytest.approx(expected.tolist(), abs=1e-6), "nothing is watched after the block"


# ---------------------------------------------------------------------------------------------- folding


@pytest.fixture
def gated(tiny_unet):
    apply_plan(tiny_unet, resolved_on(tiny_unet, clme("timestep")))
    return open_gates(tiny_unet)


def at(unet, timestep: float, batch: int = 1):
    with torch.no_grad():
        return unet(**unet_args(batch=batch) | {"timestep": torch.tensor([timestep])})[0]


def test_folded_for_one_timestep_it_is_a_plain_unet_with_the_same_output(gated):
    folded, plain = fold(gated, [500]), make_unet()
    apply_plan(plain, resolved_on(plain, PRUNED))
    assert torch.equal(at(folded, 500), at(gated, 500))
    torch.testing.assert_close(at(folded, 500, batch=2), at(gated, 500, batch=2))  # embeddings round with the batch
    assert not torch.equal(at(folded, 10), at(gated, 10))
    assert {n: t.shape for n, t in folded.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in folded.modules())


def test_folded_for_several_timesteps_each_finds_its_kernel(gated):
    folded = fold(gated, [981, 500.5, 21])
    for timestep in (21, 500.5, 981):
        for batch in (1, 2):
            torch.testing.assert_close(at(folded, timestep, batch), at(gated, timestep, batch))
    assert sum(isinstance(m, FoldedConv2d) for m in folded.modules()) == 5
    with pytest.raises(ValueError, match=r"folded for the timesteps 981, 500\.5, 21, not for 500; fold it for"):
        at(folded, 500)


def test_a_folded_unet_takes_a_timestep_in_every_form_that_a_unet_takes(gated):
    folded, args = fold(gated, [981, 21]), unet_args(batch=2)
    expected = at(gated, 981, 2)
    given = args.pop("sample"), args.pop("timestep")
    for timestep in (981, 981.0, torch.tensor(981), torch.tensor([981, 981]), torch.tensor(981.0).half()):
        with torch.no_grad():
            torch.testing.assert_close(folded(given[0], timestep, **args)[0], expected)
    apart = torch.tensor([981, 21])
    with torch.no_grad():
        found = folded(given[0], apart, **args)[0]
    torch.testing.assert_close(found, torch.cat([expected[:1], at(gated, 21, 2)[1:]]), rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_folded_unet_chooses_for_itself(gated):
    folded = fold(gated, [981, 21])
    other = copy.deepcopy(folded)
    assert other.down_blocks[0].resnets[0].conv1.timesteps is not folded.down_blocks[0].resnets[0].conv1.timesteps
    torch.testing.assert_close(at(other, 21), at(gated, 21))
    with pytest.raises(ValueError, match="needs a timestep; call it through its UNet"):
        other.down_blocks[0].resnets[0].conv1(torch.zeros(1))


def test_folding_shares_the_other_tensors_and_leaves_the_unet_as_it_was(gated):
    before, own = at(gated, 500), dict(gated.named_parameters())
    folded = fold(gated, [500])
    changed = [name for name, p in folded.named_parameters() if p is not own[name]]
    assert changed == [name.removesuffix(".experts") + ".weight" for name in own if name.endswith("experts")]
    assert torch.equal(at(gated, 500), before)


def test_folding_what_cannot_be_folded_says_why(tiny_unet, gated):
    with pytest.raises(ValueError, match="gated by the timestep"):
        fold(make_unet(), [1])
    with pytest.raises(ValueError, match="at least one timestep"):
        fold(gated, [])
    with pytest.raises(ValueError, match="already folded"):
        fold(fold(gated, [1, 2]), [1])
    gated.register_to_config(addition_embed_type="text_time")
    with pytest.raises(ValueError, match="depends on more than the timestep"):
        fold(gated, [1])


def test_every_gate_of_a_unet_is_listed_once(gated):
    assert len(expert_counts(gated)) == 5
    assert [unit.fqn for unit in blocks.iter_units(gated) if unit.kind == "resnet" and unit.block == "up_blocks.3"] == [
        "up_blocks.3.resnets.0",
        "up_blocks.3.resnets.1",
    ]
