"""What every file in `replacements/` promises, and what global-regional interactive attention computes."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from asdm.models import student as students
from asdm.plan.edits import PruningPlan, RemoveUnit, ReplaceUnit
from asdm.unet import flops
from asdm.unet.blocks import iter_units, siblings
from asdm.unet.hooks import capture
from asdm.unet.replacements import made, settings_of
from asdm.unet.replacements.gri_attention import REGIONS, GRIAttention, replace as gri
from asdm.unet.replacements.kv_downsample import DownsampledAttention
from asdm.utils import registry
from tests.tiny import SMALLEST, hooks_on, make_unet, run, unet_args

REPLACEMENTS = registry.names("asdm.unet.replacements")
UNITS = ["down_blocks.0.attentions.0", "mid_block.resnets.0", "down_blocks.1.resnets.0", "up_blocks.3.resnets.2"]


# ---------------------------------------------------------------------------------------------- the contract


def call(
    unit: nn.Module,
    channels: int,
    height: int = 8,
    width: int = 8,
    device: str = "cpu",
    grad: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
):
    """Call a unit as diffusers' blocks do; returns its input and its output."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, channels, height, width, generator=generator).contiguous(memory_format=memory_format)
    x = x.to(device).requires_grad_(grad)
    other = torch.randn(2, 7, 32, generator=generator).to(device)
    time = torch.randn(2, 4 * 32, generator=generator).to(device)
    with torch.set_grad_enabled(grad):
        if "Transformer" in type(unit).__name__:
            return x, unit(x, encoder_hidden_states=other, return_dict=False)[0]
        return x, unit(x, time)


def replaced(name: str, unet: nn.Module, fqn: str, **options) -> nn.Module | None:
    return made(name, unet.get_submodule(fqn), siblings(unet, fqn), options)


OPTIONS = {
    "cond_conv": [{}, {"gate": "timestep"}, {"original": True}],
    "gri_attention": [{}, {"regions": "quadrants"}, {"regions": "whole"}],
}  # each file's other ways to be used; {} where there is one
ADDED = {"weight", "bias", "experts"}  # a gate's linear layer and the kernels of other layers
PROBE = make_unet()
CASES = [
    pytest.param(name, fqn, options, id="-".join([name, fqn, *map(str, options.values())]))
    for name in REPLACEMENTS
    for fqn in UNITS
    for options in OPTIONS.get(name, [{}])
    if replaced(name, PROBE, fqn, **options) is not None
]
ALONE = [case for case in CASES if case.values[0] in ("cond_conv", "gri_attention", "kv_downsample", "pass_through")]


@pytest.fixture(params=[case.values for case in CASES], ids=[case.id for case in CASES])
def case(request, tiny_unet):
    """(original, what it became, channels in) of every replacement on every sort of unit that it applies to."""
    name, fqn, options = request.param
    unit = tiny_unet.get_submodule(fqn)
    return unit, replaced(name, tiny_unet, fqn, **options), unit.in_channels


def open_gates(module: nn.Module) -> nn.Module:
    """Move what a replacement adds away from its start, where it may be without effect."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".routing." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).mul(0.3))
    return module


def test_every_replacement_applies_to_something():
    assert {case.values[0] for case in CASES} == set(REPLACEMENTS)


def test_its_output_has_the_units_shape(case):
    original, new, channels = case
    assert call(new, channels)[1].shape == call(original, channels)[1].shape


def test_its_weights_are_the_units_own_tensors_and_what_it_adds_is_its_own(case):
    original, new, _ = case
    own, theirs = dict(original.named_parameters()), {id(p) for p in PROBE.parameters()}
    inherits = False
    for name, parameter in new.named_parameters():
        as_it_was = name in own and own[name].shape == parameter.shape
        assert parameter is own[name] if as_it_was and parameter.any() else id(parameter) not in theirs, name
        inherits |= as_it_was
    assert inherits or not list(new.parameters()) or "Pointwise" in type(new).__name__


@pytest.mark.parametrize(("name", "fqn", "options"), CASES)
def test_it_leaves_the_unit_as_it_was(tiny_unet, name, fqn, options):
    unit = tiny_unet.get_submodule(fqn)
    modules, hooks, (_, before) = [*map(id, unit.modules())], hooks_on(unit), call(unit, unit.in_channels)
    new = replaced(name, tiny_unet, fqn, **options)
    call(new, unit.in_channels, height=4)
    assert new is not unit
    assert ([*map(id, unit.modules())], hooks_on(unit)) == (modules, hooks)
    assert torch.equal(call(unit, unit.in_channels)[1], before)


def test_gradients_reach_its_input_and_each_of_its_weights(case):
    _, new, channels = case
    open_gates(new)
    x, out = call(new, channels, grad=True)
    out.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert [name for name, p in new.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_its_state_dict_goes_out_and_in_again(case):
    original, new, channels = case
    fresh = copy.deepcopy(open_gates(new))
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict({name: tensor.clone() for name, tensor in new.state_dict().items()}, strict=True)
    assert torch.equal(call(fresh, channels)[1], call(new, channels)[1])
    assert {name.rsplit(".", 1)[-1] for name in set(new.state_dict()) - set(original.state_dict())} <= ADDED


def test_in_channels_last_it_computes_the_same(case):
    _, new, channels = case
    _, expected = call(open_gates(new), channels)
    new.to(memory_format=torch.channels_last)
    found = call(new, channels, memory_format=torch.channels_last)[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_every_operator_of_it_is_counted(case):
    original, new, channels = case
    counted = [
        flops.count(copy.deepcopy(module).to("meta"), *_meta_call(module, channels)) for module in (original, new)
    ]
    assert counted[1].uncounted_ops == {}
    assert counted[1].total.conv_macs <= counted[0].total.conv_macs
    assert counted[1].total.attention_macs <= counted[0].total.attention_macs


def _meta_call(unit: nn.Module, channels: int):
    x = torch.empty(1, channels, 8, 8, device="meta")
    if "Transformer" in type(unit).__name__:
        return (x,), {"encoder_hidden_states": torch.empty(1, 7, 32, device="meta"), "return_dict": False}
    return (x, torch.empty(1, 4 * 32, device="meta")), {}


def test_a_deep_copy_works_by_itself(case):
    _, new, channels = case
    open_gates(new)
    twin, (_, expected) = copy.deepcopy(new), call(new, channels)
    call(new, channels, height=4, width=12)  # what one copy sees must not reach the other
    assert torch.equal(call(twin, channels)[1], expected)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in new.parameters()}


def smooth(channels: int) -> torch.Tensor:
    """A map of constant 2×2 cells: attention's cheaper forms see all of it."""
    cells = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(5))
    return cells.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def at_step_0(unit: nn.Module, x: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    text, time = torch.randn(2, 7, 32, generator=generator), torch.randn(2, 4 * 32, generator=generator)
    with torch.no_grad():
        if "Transformer" in type(unit).__name__:
            return unit(x, encoder_hidden_states=text, return_dict=False)[0]
        return unit(x, time)


# How a student begins, before any training: what a file's docstring promises, as a test.
EXACT_ON_ANY_MAP, EXACT_ON_SMOOTH_MAPS, IDENTITY = "the unit", "the unit on smooth maps", "nothing"
STEP_0 = {
    "cond_conv": EXACT_ON_ANY_MAP,
    "gri_attention": EXACT_ON_SMOOTH_MAPS,
    "kv_downsample": EXACT_ON_SMOOTH_MAPS,
    "pass_through": IDENTITY,
}
AT_FULL = {  # options with which nothing is left out
    "low_rank_attention": {"rank": 1.0},
    "low_rank_conv": {"rank": 1.0},
    "low_rank_feed_forward": {"rank": 1.0},
    "narrow_feed_forward": {"keep": 1.0},
    "narrow_resnet": {"keep": 1.0},
    "token_merging": {"ratio": 1e-6},
    "multi_query_attention": {"groups": 2},
}


WITHOUT = {  # parts that are removed: the layer whose zero is the same
    "no_self_attention": "transformer_blocks.0.attn1.to_out.0",
    "no_cross_attention": "transformer_blocks.0.attn2.to_out.0",
    "no_feed_forward": "transformer_blocks.0.ff.net.2",
}


def nearer_than_nothing(new: torch.Tensor, exact: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether an approximation is at least as near as an identity is; where channels change, as zero."""
    least = exact - before if before.shape == exact.shape else exact
    return bool((new - exact).square().mean() <= (1 + 1e-6) * least.square().mean())


@pytest.mark.parametrize(("name", "fqn", "options"), CASES)
def test_it_starts_as_its_file_says(tiny_unet, name, fqn, options):
    unit = tiny_unet.get_submodule(fqn)
    new = replaced(name, tiny_unet, fqn, **options)
    rough = torch.randn(2, unit.in_channels, 8, 8, generator=torch.Generator().manual_seed(6))
    even = smooth(unit.in_channels)
    if options.get("regions") == "quadrants":  # pooled queries meet the keys of another place
        even = even[..., :1, :1].expand_as(even).contiguous()
    if name in AT_FULL:
        full = replaced(name, tiny_unet, fqn, **AT_FULL[name])
        torch.testing.assert_close(at_step_0(full, rough), at_step_0(unit, rough), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(at_step_0(new, rough), at_step_0(unit, rough), rtol=1e-5, atol=1e-5)
    elif name in WITHOUT:
        last = WITHOUT[name]
        with torch.no_grad():
            unit.get_submodule(last).weight.zero_()
            unit.get_submodule(last).bias.zero_()
        torch.testing.assert_close(at_step_0(new, rough), at_step_0(unit, rough))
    elif name not in STEP_0:
        assert nearer_than_nothing(at_step_0(new, rough), at_step_0(unit, rough), rough)
    elif STEP_0[name] == IDENTITY:
        assert torch.equal(at_step_0(new, rough), rough)
    else:
        torch.testing.assert_close(at_step_0(new, even), at_step_0(unit, even))
        close = torch.allclose(at_step_0(new, rough), at_step_0(unit, rough), rtol=1e-5, atol=1e-5)
        assert close == (STEP_0[name] == EXACT_ON_ANY_MAP)


def student_of(unet: nn.Module, name: str, fqn: str, options: dict) -> nn.Module:
    """A student with one replacement, away from its start."""
    edit = ReplaceUnit(unit=fqn, with_=name, options=options)
    return open_gates(students.build(unet, PruningPlan(family="tiny", edits=(edit,)))[0])


@pytest.mark.parametrize(("name", "fqn", "options"), ALONE)
def test_a_student_with_it_comes_back_from_its_plan_and_its_folder(tiny_unet, tmp_path, name, fqn, options):
    student = student_of(tiny_unet, name, fqn, options)
    student.save_pretrained(tmp_path)
    again = students.StudentUNet.from_pretrained(tmp_path)
    assert again.config.edits == [{"op": "replace_unit", "unit": fqn, "with": name, "options": options}]
    assert torch.equal(run(again, batch=2), run(student, batch=2))
    assert torch.equal(run(again, batch=2), run(again, batch=2)), "the same call gives the same bits"


@pytest.mark.parametrize(("name", "fqn", "options"), ALONE)
def test_gradient_checkpointing_gives_the_same_gradients(tiny_unet, name, fqn, options):
    student = student_of(tiny_unet, name, fqn, options).train()

    def gradients() -> dict[str, torch.Tensor]:
        student.zero_grad()
        student(**unet_args(batch=2))[0].square().mean().backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if n.startswith(fqn)}

    plain = gradients()
    student.enable_gradient_checkpointing()
    again = gradients()
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, msg=key)


@pytest.mark.parametrize(("name", "fqn", "options"), ALONE)
def test_it_moves_between_dtypes(tiny_unet, name, fqn, options):
    student = student_of(tiny_unet, name, fqn, options)
    exact = run(student, batch=2)
    coarse = copy.deepcopy(student).to(torch.bfloat16)
    args = {k: v.bfloat16() if getattr(v, "is_floating_point", bool)() else v for k, v in unet_args(batch=2).items()}
    with torch.no_grad():
        out = coarse(**args)[0]
    assert {p.dtype for p in coarse.parameters()} == {out.dtype} == {torch.bfloat16}
    assert (out.float() - exact).abs().max() < 0.1 * exact.abs().max()
    torch.testing.assert_close(run(coarse.float(), batch=2), exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))


def test_each_of_them_compiles_whole(tiny_unet):
    """In one graph, each on its own input; at another size a graph must not keep the first one's."""
    firsts = {name: (fqn, options) for name, fqn, options in reversed([case.values for case in CASES])}
    assert {*firsts} == {*REPLACEMENTS}

    class EachUnit(nn.ModuleDict):
        def forward(self, maps: dict[str, torch.Tensor], text: torch.Tensor, time: torch.Tensor):
            return {
                name: self[name](x, encoder_hidden_states=text, return_dict=False)[0]
                if "attentions" in firsts[name][0]
                else self[name](x, time)
                for name, x in maps.items()
            }

    torch._dynamo.reset()
    units = {name: open_gates(replaced(name, tiny_unet, fqn, **options)) for name, (fqn, options) in firsts.items()}
    each, generator = EachUnit(units), torch.Generator().manual_seed(6)
    compiled = torch.compile(each, fullgraph=True, dynamic=False, backend="aot_eager")
    text, time = torch.randn(2, 7, 32, generator=generator), torch.randn(2, 4 * 32, generator=generator)
    for height, names in ((8, firsts), (4, ("gri_attention", "token_merging"))):
        channels = {name: unit_channels(tiny_unet, firsts[name][0]) for name in names}
        maps = {name: torch.randn(2, c, height, 8, generator=generator) for name, c in channels.items()}
        with torch.no_grad():
            expected, found = each(maps, text, time), compiled(maps, text, time)
        for name in names:
            torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


# ---------------------------------------------------------------------------------------------- all in one network

# Enough units for every replacement to have one.
SIX = SMALLEST | {"layers_per_block": 6, "up_block_types": ["CrossAttnUpBlock2D"]}


@pytest.fixture(scope="module")
def crowd() -> tuple[nn.Module, nn.Module]:
    """A UNet, and a student in which every replacement stands once, with the last of its settings."""
    teacher, edits, used = make_unet(**SIX), [], set()
    units = [unit.fqn for unit in iter_units(teacher)]
    for name in REPLACEMENTS:
        options = settings_of(name)[-1] if name != "fewer_heads" else {}  # two heads less a quarter are two
        fits = (fqn for fqn in units if fqn not in used and replaced(name, teacher, fqn, **options) is not None)
        if (fqn := next(fits, None)) and name != "pass_through":
            used.add(fqn)
            edits.append(ReplaceUnit(unit=fqn, with_=name, options=options))
    assert {edit.with_ for edit in edits} == set(REPLACEMENTS) - {"pass_through"}
    student, _ = students.build(teacher, PruningPlan(family="tiny", edits=tuple(edits)))
    return teacher, open_gates(student)


def test_a_student_with_all_of_them_comes_back_from_its_folder(crowd, tmp_path):
    _, student = crowd
    student.save_pretrained(tmp_path)
    again = students.StudentUNet.from_pretrained(tmp_path)
    assert again.config.edits == student.config.edits
    assert torch.equal(run(again, batch=2, height=8, width=8), run(student, batch=2, height=8, width=8))


def test_a_student_with_all_of_them_takes_other_sizes_and_dtypes_and_trains(crowd):
    student = copy.deepcopy(crowd[1])
    for height, width in ((8, 12), (7, 5)):
        assert run(student, batch=2, height=height, width=width).isfinite().all()
    exact = run(student, batch=2, height=8, width=8)
    coarse = copy.deepcopy(student).to(torch.bfloat16)
    args = unet_args(batch=2, height=8, width=8)
    low = {k: v.bfloat16() if getattr(v, "is_floating_point", bool)() else v for k, v in args.items()}
    with torch.no_grad():
        assert (coarse(**low)[0].float() - exact).abs().max() < 0.1 * exact.abs().max()
    gradients = []
    for checkpointed in (False, True):
        student.train().zero_grad()
        if checkpointed:
            student.enable_gradient_checkpointing()
        student(**args)[0].square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@torch.no_grad()
def test_in_onnx_all_of_them_give_pytorchs_output(crowd, tmp_path):
    """Unit by unit, in one graph: each unit's own output, so that no error hides behind another."""
    student, args = crowd[1], unet_args(batch=2, height=8, width=16)
    fqns = [edit["unit"] for edit in student.config.edits]

    class EachUnit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = student

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor):
            with capture(self.unet, fqns) as maps:
                out = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
            return [out, *(maps[fqn] for fqn in fqns)]

    values = [args[name] for name in ("sample", "timestep", "encoder_hidden_states")]
    graph = torch.onnx.export(EachUnit().eval(), tuple(values), dynamo=True, verbose=False)
    graph.save(tmp_path / "all.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "all.onnx")
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, dict(zip(names, (value.numpy() for value in values), strict=True)))
    for fqn, mine, expected in zip(["whole", *fqns], found, EachUnit()(*values), strict=True):
        worst = (torch.from_numpy(mine) - expected).abs().max() / expected.abs().max()
        assert worst < 1e-3, fqn


# Multiply-adds of a unit of c channels on h×w pixels with a text of t tokens of width e, and d channels of time.
def transformer_macs(
    c: int = 32, n: int = 35, t: int = 7, e: int = 32, attention: int | None = None, cross: int | None = None,
    feed_forward: int | None = None,
) -> int:  # fmt: skip
    attention = 4 * n * c * c + 2 * n * n * c if attention is None else attention
    cross = 2 * n * c * c + 2 * t * e * c + 2 * n * t * c if cross is None else cross
    feed_forward = n * 12 * c * c if feed_forward is None else feed_forward
    return 2 * n * c * c + attention + cross + feed_forward


def resnet_macs(i: int = 32, c: int = 64, n: int = 35, d: int = 128, conv1: int | None = None, conv2: int | None = None,
                time: int | None = None) -> int:  # fmt: skip
    convs = (9 * i * c * n if conv1 is None else conv1) + (9 * c * c * n if conv2 is None else conv2)
    return convs + (d * c if time is None else time) + (i * c * n)


N, C = 5 * 7, 32  # of down_blocks.0.attentions.0
CLOSED_FORMS = [  # (replacement, options, multiply-adds)
    ("no_self_attention", {}, transformer_macs(attention=0)),
    ("no_cross_attention", {}, transformer_macs(cross=0)),
    ("no_feed_forward", {}, transformer_macs(feed_forward=0)),
    # 12 cells of the map ask, all 35 tokens answer
    ("gri_attention", {}, transformer_macs(attention=(12 + 3 * N) * C * C + 2 * 12 * N * C)),
    ("gri_attention", {"regions": "quadrants"}, transformer_macs(attention=(12 + 3 * N) * C * C + 2 * 12 * N * C)),
    ("gri_attention", {"regions": "whole"}, transformer_macs(attention=(12 + 3 * N) * C * C + 2 * 12 * N * C)),
    ("kv_downsample", {"factor": 2}, transformer_macs(attention=2 * N * C * C + 2 * 12 * C * C + 2 * N * 12 * C)),
    ("kv_downsample", {"factor": 3}, transformer_macs(attention=2 * N * C * C + 2 * 6 * C * C + 2 * N * 6 * C)),
    # 12 destinations, 23 sources, of which ⌊35/2⌋ = 17 are merged, so 18 tokens attend and 35 get an answer
    ("token_merging", {}, transformer_macs(attention=23 * 12 * C + (3 * 18 + N) * C * C + 2 * 18 * 18 * C)),
    ("multi_query_attention", {}, transformer_macs(attention=3 * N * C * C + 2 * N * N * C)),
    ("fewer_heads", {}, transformer_macs(attention=2 * N * C * C + N * N * C, cross=N * C * C + 7 * (32 + N) * C)),
    ("low_rank_attention", {"rank": 0.25}, transformer_macs(attention=N * C * C + N * N * C // 2)),
    ("narrow_feed_forward", {"keep": 0.25}, transformer_macs(feed_forward=N * 3 * C * C)),
    ("low_rank_feed_forward", {"rank": 0.5}, transformer_macs(feed_forward=N * 7 * C * C)),
    ("pointwise_conv", {}, N * C * C),
    # down_blocks.1.resnets.0: 32 → 64 channels, 128 of time
    ("narrow_resnet", {"keep": 0.5}, resnet_macs(conv1=9 * 32 * 32 * N, conv2=9 * 32 * 64 * N, time=128 * 32)),
    ("low_rank_conv", {"rank": 0.5}, resnet_macs(conv1=(9 * 32 * 32 + 32 * 64) * N, conv2=(9 * 64 * 32 + 32 * 64) * N)),
    ("depthwise_resnet", {}, resnet_macs(conv1=(9 * 32 + 32 * 64) * N, conv2=(9 * 64 + 64 * 64) * N)),
    # conv2 alone has a kernel of its shape beside it; a gate sees 64 channels or the time, a kernel is mixed once
    ("cond_conv", {}, resnet_macs(conv2=9 * 64 * 64 * (N + 1) + 64 * 2)),
    ("cond_conv", {"gate": "timestep"}, resnet_macs(conv2=9 * 64 * 64 * (N + 1) + 128 * 2)),
    ("cond_conv", {"original": True}, resnet_macs(conv2=9 * 64 * 64 * (N + 2) + 64 * 3)),
    ("pointwise_conv", {"resnet": True}, 2 * 32 * 64 * N + 128 * 64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "macs"), CLOSED_FORMS)
def test_its_multiply_adds_are_those_of_its_closed_form(name, options, macs):
    resnet = options.pop("resnet", False) or name in ("narrow_resnet", "low_rank_conv", "depthwise_resnet", "cond_conv")
    fqn = "down_blocks.1.resnets.0" if resnet else "down_blocks.0.attentions.0"
    new = copy.deepcopy(replaced(name, PROBE, fqn, **options)).to("meta")
    args, kwargs = _meta_call(new, 32)
    x = torch.empty(1, 32, 5, 7, device="meta")
    assert flops.count(new, (x, *args[1:]), kwargs).total.macs == macs


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kv_downsample", {"factor": 5}, "factor must be one of 2, 3, 4, got 5"),
        ("narrow_resnet", {"keep": 0}, "keep must be above 0 and at most 1, got 0"),
        ("token_merging", {"ratio": 0.8}, "ratio must be above 0 and at most 0.75, got 0.8"),
        ("multi_query_attention", {"groups": 3}, "groups must divide the 2 heads, got 3; choose from 1, 2"),
        ("low_rank_conv", {"factor": 2}, "low_rank_conv has no option 'factor'; choose from rank"),
        ("pass_through", {"keep": 1}, "pass_through has no option 'keep'; choose from none"),
    ],
)
def test_an_option_that_is_none_is_refused_in_one_sentence(tiny_unet, name, options, message):
    fqn = "mid_block.resnets.0" if "resnet" in name or "conv" in name else "down_blocks.0.attentions.0"
    edit = ReplaceUnit(unit=fqn, with_=name, options=options)
    with pytest.raises(ValueError, match=f"^cannot replace .*: {message}.$"):
        students.build(tiny_unet, PruningPlan(family="tiny", edits=(edit,)))


@torch.no_grad()
def test_what_is_kept_is_chosen_by_what_was_measured(tiny_unet):
    """A hidden channel that is always silent goes first, whatever its weights."""
    unit = tiny_unet.get_submodule("mid_block.resnets.0")
    loud = torch.arange(64) % 8 < 4  # half of each of 8 groups
    new = made("narrow_resnet", unit, (), {}, {"conv2": loud.float()})
    assert torch.equal(new.conv1.weight, unit.conv1.weight[loud])
    assert torch.equal(new.time_emb_proj.bias, unit.time_emb_proj.bias[loud])
    assert new.norm2.num_groups == unit.norm2.num_groups


def unit_channels(unet: nn.Module, fqn: str) -> int:
    return unet.get_submodule(fqn).in_channels


def test_pass_through_is_an_identity_and_refuses_to_change_channels(tiny_unet):
    for fqn in UNITS[:2]:
        unit = tiny_unet.get_submodule(fqn)
        x, out = call(replaced("pass_through", tiny_unet, fqn), unit.in_channels)
        assert torch.equal(out, x)
    assert replaced("pass_through", tiny_unet, "down_blocks.1.resnets.0") is None


def test_pass_through_answers_a_transformers_call_in_both_ways(tiny_unet):
    unit = replaced("pass_through", tiny_unet, UNITS[0])
    x = torch.randn(1, 32, 4, 4)
    assert unit(x, encoder_hidden_states=None, return_dict=False)[0] is x
    assert unit(x).sample is x


# ---------------------------------------------------------------------------------------------- attentions on maps

CHEAPER = {"gri_attention": GRIAttention, "kv_downsample": DownsampledAttention}
SD2 = {"use_linear_projection": True, "attention_head_dim": [2, 4, 8, 8]}
SDXL = {
    "use_linear_projection": True,
    "attention_head_dim": [2, 4, 4],
    "transformer_layers_per_block": [1, 2, 3],
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}


def cheaper_everywhere(unet: nn.Module, name: str) -> nn.Module:
    """The UNet with a cheaper self-attention in every Transformer."""
    edits = [ReplaceUnit(unit=u.fqn, with_=name) for u in iter_units(unet) if u.kind == "transformer"]
    return students.build(unet, PruningPlan(family="tiny", edits=tuple(edits)))[0]


@pytest.mark.parametrize("name", CHEAPER)
@pytest.mark.parametrize("config", [SD2, SDXL], ids=["SD2", "SDXL"])
def test_every_self_attention_of_other_families_becomes_cheaper_and_no_cross_attention(name, config):
    teacher = make_unet(**config)
    student = cheaper_everywhere(teacher, name)
    selves = [m for n, m in student.named_modules() if n.endswith(".attn1")]
    crosses = [m for n, m in student.named_modules() if n.endswith(".attn2")]
    assert {type(m) for m in selves} == {CHEAPER[name]}
    assert {type(m) for m in crosses} == {Attention}
    assert len(selves) == sum(n.endswith(".attn1") for n, _ in teacher.named_modules())
    assert {m.heads for m in selves} == {m.heads for n, m in teacher.named_modules() if n.endswith(".attn1")}
    for size in ((16, 16), (16, 24), (24, 40)):
        assert run(student, batch=2, height=size[0], width=size[1]).isfinite().all()
    counted = [
        flops.count(make_meta(unet), (), unet_args(device="meta")).total.attention_macs for unet in (teacher, student)
    ]
    assert counted[1] < counted[0]


def make_meta(unet: nn.Module) -> nn.Module:
    return copy.deepcopy(unet).to("meta")


@pytest.mark.parametrize("name", CHEAPER)
def test_processors_slicing_and_fusing_reach_the_other_attentions_and_change_nothing(tiny_unet, name):
    student = cheaper_everywhere(tiny_unet, name)
    before = run(student)
    assert all(".attn2." in key for key in student.attn_processors)
    for processor in (AttnProcessor(), dict.fromkeys(student.attn_processors, AttnProcessor2_0())):
        student.set_attn_processor(processor)
        torch.testing.assert_close(run(student), before, rtol=1e-4, atol=1e-5)
    student.set_default_attn_processor()
    for slices in ("auto", "max", None):
        student.set_attention_slice(slices)
        torch.testing.assert_close(run(student), before, rtol=1e-4, atol=1e-5)
    student.set_default_attn_processor()
    student.fuse_qkv_projections()
    torch.testing.assert_close(run(student), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CHEAPER)
def test_a_mask_is_refused_and_names_what_to_do(tiny_unet, name):
    student = cheaper_everywhere(tiny_unet, name)
    with pytest.raises(ValueError, match="without a mask; remove the mask, or keep this unit"):
        student(**unet_args(), attention_mask=torch.ones(1, 256))
    hidden_words = torch.ones(1, 7)
    hidden_words[:, 4:] = 0
    assert run(student).shape == student(**unet_args(), encoder_attention_mask=hidden_words)[0].shape


def test_a_unit_that_only_looks_at_the_text_has_no_self_attention():
    unet = make_unet(only_cross_attention=[True, False, False, False])
    assert replaced("gri_attention", unet, "down_blocks.0.attentions.0") is None
    assert replaced("gri_attention", unet, "down_blocks.1.attentions.0") is not None


@torch.no_grad()
def test_averaged_keys_and_values_are_the_averages_of_the_teachers(attention):
    """Averaging before a projection without bias is averaging after it."""
    module, (height, width), x = DownsampledAttention(attention), (4, 6), tokens(4, 6, batch=2)
    module.size = (height, width)

    def averaged(project: nn.Module) -> torch.Tensor:
        maps = project(x).view(2, height, width, 32).permute(0, 3, 1, 2)
        return F.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)

    query, key, value = (t.view(2, -1, 2, 16).transpose(1, 2) for t in
                         (attention.to_q(x), averaged(attention.to_k), averaged(attention.to_v)))  # fmt: skip
    scores = torch.softmax(query @ key.transpose(-1, -2) / 4, dim=-1)
    expected = attention.to_out[0]((scores @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_averaged_keys_cost_exactly_a_quarter_too(tiny_unet, height, width):
    attention = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to("meta")
    module, n, c = DownsampledAttention(attention), height * width, 32
    module.size = (height, width)
    full, quarter = (flops.count(m, (torch.empty(1, n, c, device="meta"),), {}).total for m in (attention, module))
    assert quarter.attention_macs == 2 * n * (n // 4) * c == full.attention_macs // 4
    assert full.linear_macs - quarter.linear_macs == 2 * (n - n // 4) * c * c


# ---------------------------------------------------------------------------------------------- GRI


@pytest.fixture
def attention():
    """diffusers' self-attention over 32 channels in two heads, as a Transformer unit has it."""
    torch.manual_seed(0)
    return Attention(query_dim=32, heads=2, dim_head=16).double().eval()


def tokens(height: int, width: int, batch: int = 1, channels: int = 32) -> torch.Tensor:
    return torch.randn(batch, height * width, channels, generator=torch.Generator().manual_seed(3), dtype=torch.double)


@torch.no_grad()
def gri_of(attention: nn.Module, x: torch.Tensor, height: int, width: int, regions: str = "phases") -> torch.Tensor:
    module = GRIAttention(attention, regions)
    module.size = (height, width)
    return module(x)


@torch.no_grad()
def by_loops(attention: nn.Module, x: torch.Tensor, height: int, width: int, regions: str) -> torch.Tensor:
    """§2.4 pixel by pixel: a cell's average asks, the pixels of one region answer, the answer goes to that region."""
    heads, depth = attention.heads, x.shape[-1] // attention.heads
    half_height, half_width = -(-height // 2), -(-width // 2)
    out = torch.full_like(x, torch.nan)
    pixels = [(i, j) for i in range(height) for j in range(width)]

    def region(i: int, j: int) -> tuple[int, ...]:
        return {"phases": (i % 2, j % 2), "quadrants": (i // half_height, j // half_width), "whole": ()}[regions]

    def asked_by(i: int, j: int) -> tuple[int, int]:
        return (i % half_height, j % half_width) if regions == "quadrants" else (i // 2, j // 2)

    for image in range(x.shape[0]):
        key, value = attention.to_k(x[image]), attention.to_v(x[image])
        for i, j in pixels:
            cell = [a * width + b for a, b in pixels if (a // 2, b // 2) == asked_by(i, j)]
            seen = [a * width + b for a, b in pixels if region(a, b) == region(i, j)]
            query = attention.to_q(x[image, cell].mean(dim=0))
            for head in range(heads):
                part = slice(head * depth, (head + 1) * depth)
                scores = [float(query[part] @ key[token, part]) / depth**0.5 for token in seen]
                shares = torch.softmax(torch.tensor(scores, dtype=x.dtype), dim=0)
                out[image, i * width + j, part] = sum(s * value[t, part] for s, t in zip(shares, seen, strict=True))
    return attention.to_out[0](out)


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize(
    ("height", "width"),
    [(4, 4), (2, 2), (4, 6), (6, 2), (5, 4), (4, 5), (5, 3), (1, 6), (1, 5), (6, 1), (3, 1), (1, 1)],
    ids="{}".format,
)
def test_gri_is_what_the_paper_says_pixel_by_pixel(attention, height, width, regions):
    x = tokens(height, width)
    expected = by_loops(attention, x, height, width, regions)
    torch.testing.assert_close(gri_of(attention, x, height, width, regions), expected)


@pytest.mark.parametrize("regions", ["phases", "quadrants"])
def test_both_ways_to_compute_it_agree_on_even_sizes(attention, regions):
    module, x = GRIAttention(attention, regions), tokens(4, 6, batch=3)
    key, value = (project(x).view(3, 4, 6, 32) for project in (module.to_k, module.to_v))
    query = module.to_q(x.view(3, 2, 2, 3, 2, 32).mean(dim=(2, 4)).view(3, -1, 32))
    torch.testing.assert_close(module._all_at_once(query, key, value), module._one_by_one(query, key, value))


@pytest.mark.parametrize("regions", ["phases", "whole"])
def test_where_2x2_cells_are_constant_gri_is_the_full_attention(attention, regions):
    """Then the pooled queries are the queries, and each phase has the whole map's keys, once instead of four times."""
    cells = tokens(3, 4).view(1, 3, 4, 32)
    x = cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).view(1, 6 * 8, 32)
    with torch.no_grad():
        torch.testing.assert_close(gri_of(attention, x, 6, 8, regions), attention(x))
    rough = tokens(6, 8)
    assert not torch.allclose(gri_of(attention, rough, 6, 8, regions), attention(rough), rtol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3)])
def test_images_of_a_batch_do_not_see_each_other(attention, height, width):
    x = tokens(height, width, batch=3)
    one_by_one = torch.cat([gri_of(attention, image[None], height, width) for image in x])
    torch.testing.assert_close(gri_of(attention, x, height, width), one_by_one)


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_the_attention_core_costs_exactly_a_quarter(tiny_unet, height, width, regions):
    attention = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to("meta")
    module, n, c = GRIAttention(attention, regions), height * width, 32
    module.size = (height, width)
    x = torch.empty(1, n, c, device="meta")
    full, quarter = (flops.count(m, (x,), {}).total for m in (attention, module))
    assert full.attention_macs == 2 * n * n * c
    assert quarter.attention_macs == 4 * 2 * (n // 4) * (n // 4) * c == full.attention_macs // 4
    # q is projected after pooling; k, v and out see every token as before
    assert full.linear_macs - quarter.linear_macs == (n - n // 4) * c * c


def test_gri_has_no_weights_of_its_own(tiny_unet):
    unit = tiny_unet.get_submodule(UNITS[0])
    new = gri(unit)
    assert set(new.state_dict()) == set(unit.state_dict())
    found = [name for name, module in new.named_modules() if isinstance(module, GRIAttention)]
    assert found == ["transformer_blocks.0.attn1"]  # the cross-attention stays


def test_a_unit_tells_its_map_to_gri_at_every_call(tiny_unet):
    unit = gri(tiny_unet.get_submodule(UNITS[0]))
    attention = unit.transformer_blocks[0].attn1
    for height, width in ((8, 4), (4, 8), (5, 7)):
        assert call(unit, 32, height, width)[1].shape == (2, 32, height, width)
        assert attention.size == (height, width)


def test_height_and_width_are_not_mistaken_for_each_other(attention):
    x = tokens(4, 8)
    assert not torch.allclose(gri_of(attention, x, 4, 8), gri_of(attention, x, 8, 4))


def test_gri_in_bf16_is_gri_but_coarser(tiny_unet):
    unit = gri(tiny_unet.get_submodule(UNITS[0]))
    x, text = torch.randn(2, 32, 6, 5), torch.randn(2, 7, 32)
    with torch.no_grad():
        exact = unit(x, encoder_hidden_states=text, return_dict=False)[0]
        coarse = unit.bfloat16()(x.bfloat16(), encoder_hidden_states=text.bfloat16(), return_dict=False)[0]
    assert coarse.dtype == torch.bfloat16
    assert (coarse.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_unet_with_gri_everywhere_takes_odd_sizes(tiny_unet):
    before = run(tiny_unet)
    for unit in list(iter_units(tiny_unet)):
        if unit.kind == "transformer":
            tiny_unet.set_submodule(unit.fqn, gri(unit.modules[0]))
    after = run(tiny_unet)  # at 16×16 the maps are 16, 8, 4 and, in the middle, 2 pixels wide
    assert after.shape == before.shape
    assert not torch.equal(after, before)
    assert run(tiny_unet, height=24, width=40).isfinite().all()  # 3×5 in the middle


def test_gri_refuses_what_it_cannot_do(attention):
    module, x = GRIAttention(attention), tokens(4, 4)
    with pytest.raises(ValueError, match="expected 0×0 tokens, got 16"):
        module(x)
    module.size = (4, 4)
    with pytest.raises(ValueError, match="without a mask"):
        module(x, attention_mask=torch.zeros(1, 16))
    with pytest.raises(ValueError, match="self-attention"):
        module(x, encoder_hidden_states=x)
    with pytest.raises(ValueError, match="expected 4×4 tokens, got 12"):
        module(tokens(3, 4))


def test_a_bare_attention_goes_and_the_rest_runs_on():
    """Kandinsky's and DeepFloyd IF's blocks hold attentions without a Transformer around them."""
    blocks_of = {"down_block_types": ["SimpleCrossAttnDownBlock2D"], "up_block_types": ["SimpleCrossAttnUpBlock2D"]}
    teacher = make_unet(**SMALLEST | blocks_of, resnet_time_scale_shift="scale_shift")
    unit = "down_blocks.0.attentions.0"
    student, applied = students.build(teacher, PruningPlan(family="small", edits=(RemoveUnit(unit=unit),)))
    with torch.no_grad():
        teacher.get_submodule(unit).to_out[0].weight.zero_()  # adds nothing to its input
        teacher.get_submodule(unit).to_out[0].bias.zero_()
    assert applied.removed == (unit,)
    torch.testing.assert_close(run(student), run(teacher))


@pytest.mark.parametrize("name", sorted({*REPLACEMENTS} - {"pass_through"}))
def test_each_takes_the_wider_tokens_of_a_layer_norm_under_autocast(name: str) -> None:
    """As on a GPU, whose autocast leaves normalisation in fp32."""
    unet = make_unet()
    for fqn in ("down_blocks.0.attentions.0", "down_blocks.0.resnets.0"):
        new = made(name, unet.get_submodule(fqn), siblings(unet, fqn), {})
        if new is None:
            continue
        for norm in [module for module in new.modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]:
            norm.register_forward_hook(lambda _, __, out: out.float())
        x = torch.randn(1, unet.config["block_out_channels"][0], 8, 8)
        texts, steps = torch.randn(1, 7, unet.config["cross_attention_dim"]), torch.randn(1, 128)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            out = new(x, steps) if "resnets" in fqn else new(x, encoder_hidden_states=texts, return_dict=False)[0]
        assert torch.isfinite(out).all()
