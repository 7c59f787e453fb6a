"""The profiler on a small real UNet: times add up, planted slowness is found, nothing is left behind."""

from __future__ import annotations

import itertools
import math
import time
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asdm.measure import machine
from asdm.measure.backends import Attribution, eager, fake
from asdm.measure.clocks import FakeClock, HostClock
from asdm.models import example_inputs, loading
from asdm.models.families import load_family
from asdm.plan.edits import ReplaceUnit
from asdm.unet import blocks, surgery
from asdm_prof.analysis.rank import rank
from asdm_prof.planner.plan import make_plan
from asdm_prof.profiler import options, timing
from asdm_prof.profiler.options import replaceable
from asdm_prof.profiler.profile import profile
from asdm_prof.profiler.progress import Status
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Profile
from tests.tiny import SMALL, SMALLEST, make_unet

QUICK = ProfileSettings(time_budget_s=2, min_rounds=2)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_units_and_glue_add_up_to_the_whole_in_every_run(faked: Profile) -> None:
    for run, whole in enumerate(faked.whole.hooked_latency_s.samples):
        assert sum(part.latency_s.samples[run] for part in faked.parts) == pytest.approx(whole)


def test_the_parts_hold_all_parameters_and_macs(faked: Profile) -> None:
    assert sum(part.params for part in faked.parts) == faked.whole.params == 859520964
    assert sum(part.macs for part in faked.parts) == faked.whole.macs == 401636720640


def test_a_fake_runtime_takes_a_millisecond_and_its_macs(faked: Profile) -> None:
    unit = faked.part("up_blocks.3.attentions.0")
    expected = fake.SECONDS_PER_PART + 19365724160 * fake.SECONDS_PER_MAC
    assert unit.latency_s.median == pytest.approx(expected, rel=3 * fake.NOISE)


def test_replacements_are_timed_at_the_highest_resolution_only(faked: Profile) -> None:
    shallow = [f"down_blocks.0.attentions.{i}" for i in range(2)] + [f"up_blocks.3.attentions.{i}" for i in range(3)]
    gri = [option for option in faked.options if option.replacement == "gri_attention"]
    assert [option.unit for option in gri] == shallow
    for option in gri:
        assert option.attention_macs < faked.part(option.unit).attention_macs
        assert option.share.median < faked.part(option.unit).share.median
    experts = [option for option in faked.options if option not in gri]
    assert [option.unit for option in experts] == [unit.replace("attentions", "resnets") for unit in shallow]
    for option in experts:
        assert option.conv_macs == faked.part(option.unit).conv_macs
        assert 0 < option.linear_macs - faked.part(option.unit).linear_macs < option.conv_macs / 1000
        assert option.params > faked.part(option.unit).params


def test_a_profile_survives_its_file(faked: Profile, tmp_path: Path) -> None:
    path = faked.save(tmp_path / "profile.json")
    assert Profile.load(path) == faked
    assert Profile.load(path).sha256() == faked.sha256()


@dataclass(frozen=True)
class Watched:
    """One real profile of the tiny UNet, with what was reported and how many sessions were alive meanwhile."""

    profile: Profile
    weights: str
    statuses: list[Status]
    sessions_alive: list[int]


@pytest.fixture(scope="module")
def watched(tiny_folder: Path) -> Watched:
    references: list[weakref.ref[eager.EagerSession]] = []
    alive: list[int] = []
    statuses: list[Status] = []
    opened = eager.open_session

    def open_session(*args: Any) -> eager.EagerSession:
        session = opened(*args)
        references.append(weakref.ref(session))
        alive.append(sum(reference() is not None for reference in references))
        return session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "open_session", open_session)
        result = profile(str(tiny_folder), QUICK, watch=statuses.append)
    return Watched(result, str(tiny_folder), statuses, alive)


def test_eager_parts_run_in_flow_order_and_sum_to_less_than_the_whole(watched: Watched) -> None:
    result = watched.profile
    assert result.weights == watched.weights, "a folder with weights is profiled with them"
    assert [part.fqn for part in result.parts] == [*result.flow, "other"]
    assert min(result.part("other").latency_s.samples) > 0
    assert len(result.whole.latency_s.samples) == len(result.whole.hooked_latency_s.samples) >= 4
    fvcore = next(line for line in result.trust if "fvcore" in line.check)
    assert fvcore.passed, fvcore.value


def test_one_session_is_there_at_a_time(watched: Watched) -> None:
    """A runtime's session holds weights of its own: the UNet's and each option's together may not fit."""
    assert len(watched.sessions_alive) >= 4  # the hooks' cost, the UNet, and two options
    assert set(watched.sessions_alive) == {1}


def test_options_have_as_many_calls_as_there_were_rounds(watched: Watched) -> None:
    rounds = len(watched.profile.whole.latency_s.samples) // 2
    assert {len(option.latency_s.samples) for option in watched.profile.options} == {max(rounds - 1, 2)}


def test_progress_tells_every_stage(watched: Watched) -> None:
    stages = list(dict.fromkeys(status.stage for status in watched.statuses))
    assert stages == [
        "counting",
        "building",
        "counting again with fvcore",
        "timing the hooks",
        "warming up",
        "measuring",
        "opening with gri_attention",
        "measuring with gri_attention",
        "opening with cond_conv",
        "measuring with cond_conv",
        "measuring peaks",
    ]
    assert max(status.calls for status in watched.statuses) >= 8  # two rounds of four


def test_a_profile_by_hooks_maps_nothing(watched: Watched) -> None:
    result = watched.profile
    assert (result.mapped_share, result.observed_slowdown) == (None, None)
    assert "hooks cost nothing" in {line.check for line in result.trust}


@pytest.mark.serial
def test_a_planted_slow_unit_is_named(tiny_unet: nn.Module) -> None:
    """A sleep of 20 ms in one ResNet, whose whole UNet takes about that long."""
    slow = tiny_unet.get_submodule("up_blocks.1.resnets.2")
    forward = slow.forward

    def sleepy(*args: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(0.02)
        return forward(*args, **kwargs)

    slow.forward = sleepy
    parts = list(blocks.iter_parts(tiny_unet))
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    with torch.inference_mode():
        session = eager.open_session(tiny_unet, inputs, parts, HostClock())
        session.run()
        whole, times = session.run_parts()
    assert max(times, key=lambda fqn: times[fqn]) == "up_blocks.1.resnets.2"
    assert 0.02 <= times["up_blocks.1.resnets.2"] <= whole


def test_marks_are_read_from_the_clock_that_is_given(tiny_unet: nn.Module) -> None:
    """Each ResNet moves a fake clock by a second; every other part takes none."""
    clock = FakeClock()
    parts = list(blocks.iter_parts(tiny_unet))
    handles = [
        part.modules[0].register_forward_hook(lambda *_: clock.advance(1.0)) for part in parts if part.kind == "resnet"
    ]
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    with torch.no_grad():
        whole, times = eager.open_session(tiny_unet, inputs, parts, clock).run_parts()
    for handle in handles:
        handle.remove()
    assert whole == 22.0
    assert {part.fqn: times[part.fqn] for part in parts} == {
        part.fqn: 1.0 if part.kind == "resnet" else 0.0 for part in parts
    }


def test_nothing_is_left_hooked(tiny_unet: nn.Module) -> None:
    before = hooks(tiny_unet)
    inputs = {"sample": torch.randn(1, 3, 16, 16), "timestep": torch.tensor([1]), "encoder_hidden_states": None}
    session = eager.open_session(tiny_unet, inputs, list(blocks.iter_parts(tiny_unet)), FakeClock())
    with pytest.raises(RuntimeError):  # three channels where four are wanted
        session.run_parts()
    assert hooks(tiny_unet) == before


def test_replacements_leave_the_unet_as_it_was(tiny_folder: Path) -> None:
    family = load_family(str(tiny_folder))
    unet = loading.load_unet(family, str(tiny_folder))
    modules_before = [id(module) for module in unet.modules()]
    taken = timing.time_unet(
        unet,
        example_inputs.unet_inputs(family),
        list(blocks.iter_parts(unet)),
        replaceable(blocks.topology(unet), unet),
        loading.meta_unet(family),
        eager,
        HostClock(),
        QUICK,
        HostClock().mark(),
        lambda _: None,
    )
    assert [id(module) for module in unet.modules()] == modules_before
    assert set(taken.options_s) == {"gri_attention", "cond_conv"}


def test_all_options_of_every_unit_are_timed_in_rounds(tmp_path: Path) -> None:
    """Every replacement with every setting, once in each unit that takes it, and never two in one unit of a call."""
    folder = tmp_path / "small"
    make_unet(**SMALL).save_pretrained(folder, safe_serialization=True)
    shapes = loading.meta_unet(load_family(str(folder)))
    edits = surgery.applicable(shapes, options.parse_options("all"))
    rounds = replaceable(blocks.topology(shapes), shapes, "all")
    assert sorted(map(str, itertools.chain(*rounds.values()))) == sorted(map(str, edits))
    units = [unit.fqn for unit in blocks.iter_units(shapes)]
    assert all(len({edit.unit for edit in round_}) == len(round_) < len(units) for round_ in rounds.values())
    most = max(sum(edit.unit == fqn for edit in edits) for fqn in units)
    assert len(rounds) == math.ceil(1.5 * most)
    some = replace(QUICK, options="narrow_resnet,kv_downsample", time_budget_s=1)
    found = profile(str(folder), some)
    assert {option.replacement for option in found.options} == {"narrow_resnet", "kv_downsample"}
    assert {option.options.get("factor") for option in found.options} == {None, 3}
    again = Profile.load(found.save(tmp_path / "profile.json"))
    assert [option.edit for option in again.options] == [option.edit for option in found.options]
    plan = make_plan(again, {"macs": "0.95"})
    assert plan.predicted is not None
    with pytest.raises(ValueError, match=r"no time for narrow_resnet \(keep 0.9\) in mid.*it timed narrow_resnet"):
        found.option(ReplaceUnit(unit="mid_block.resnets.0", with_="narrow_resnet", options={"keep": 0.9}))


def test_what_stands_in_for_an_option_has_its_shapes_and_the_units_own_tensors(tiny_unet: nn.Module) -> None:
    with torch.device("meta"):
        shapes = make_unet()
    units = ["mid_block.resnets.0", "mid_block.attentions.0"]

    def sizes(module: nn.Module) -> list[tuple[str, torch.Size]]:
        return [(name, parameter.shape) for name, parameter in module.named_parameters()]

    for edit in surgery.applicable(shapes, options.parse_options("all"), units):
        stand_in = options.stand_ins(tiny_unet, shapes, [edit])[edit.unit]
        real = surgery.replacement_for(tiny_unet, edit)
        own = dict(tiny_unet.get_submodule(edit.unit).named_parameters())
        assert sizes(stand_in) == sizes(real)
        alike = [(n, p) for n, p in stand_in.named_parameters() if n in own and own[n].shape == p.shape]
        assert all(parameter is own[name] for name, parameter in alike)
        assert not any(parameter.is_meta for parameter in stand_in.parameters())


def test_unknown_options_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown name .ratio. in replacements; choose from fast, all, cond_conv"):
        profile("sd15", ProfileSettings(options="ratio"))
    assert options.parse_options("fast") == [*options.FAST]
    assert options.parse_options("low_rank_conv, fast") == ["low_rank_conv", *options.FAST]
    assert options.parse_options("all,low_rank_conv") == options.parse_options("all")


def test_too_little_memory_is_said_before_it_is_taken(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda _: 1 << 20)
    monkeypatch.setattr(loading, "load_unet", lambda *_, **__: pytest.fail("the model was built"))
    with pytest.raises(ValueError, match=r"needs about 0\.\d GiB on cpu and 0\.0 GiB are free"):
        profile(str(tiny_folder), QUICK)


def test_noise_fails_the_trust_box_and_names_the_remedy(faked: Profile) -> None:
    from asdm_prof.profiler import checks as trust

    noisy = [1.0, 1.0, 2.0, 1.0, 2.5, 1.0, 2.0, 3.0, 1.0, 2.0]
    lines = trust.box(faked.whole, list(faked.parts), noisy, noisy[::-1], None, {})
    failed = {line.check: line.remedy for line in lines if not line.passed}
    assert "the machine was quiet" in failed
    assert "--time-budget" in failed["the machine was quiet"]


def test_hooks_that_cost_time_fail_the_trust_box(faked: Profile) -> None:
    """0.2 s of hooks in a call of 4 s is 5 %; noise of 30 % at full size does not hide it."""
    from asdm_prof.profiler import checks as trust

    noisy = [3.0, 5.0, 4.0, 4.5]
    lines = trust.box(faked.whole, list(faked.parts), noisy, noisy[::-1], None, {}, hook_cost_s=[0.2, 0.21, 0.2])
    line = next(line for line in lines if line.check == "hooks cost nothing")
    assert not line.passed
    assert f"{0.2 / faked.whole.latency_s.median:+.2%}" in line.value


def test_an_operator_without_a_formula_fails_the_trust_box(faked: Profile) -> None:
    from asdm_prof.profiler import checks as trust

    lines = trust.box(faked.whole, list(faked.parts), [1.0] * 4, [1.0] * 4, None, {"aten.fft": 1})
    assert not lines[0].passed
    assert "aten.fft" in lines[0].value


def test_a_slow_unit_of_few_parameters_leads_the_rank(faked: Profile) -> None:
    leaders = {row.fqn for row in rank(faked)[:5]}
    assert leaders == {option.unit for option in faked.options if option.replacement == "gri_attention"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1, got -1"),
        ({"dtype": "fp64"}, "unknown dtype 'fp64'; choose from fp32, bf16, fp16"),
        ({"device": "tpu"}, "device 'tpu' is not available; choose from cpu"),
        ({"size": 500}, "size 500 does not fit sd15: choose a multiple of 64"),
        ({"backend": "vulkan"}, "unknown name 'vulkan' in backends; choose from compiled, cudagraph, eager"),
    ],
)
def test_bad_settings_get_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        profile("sd15", ProfileSettings(**change))


# ---------------------------------------------------------------------------------------------- runtimes


def test_a_profile_says_how_part_times_were_had_where_they_are_not_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's node times: same units, a mapped share, and two checks in the place of the hooks' cost."""
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(options, "FAST", ("cond_conv",))  # each is one more graph to export
    folder = tmp_path / "small"
    make_unet(**SMALLEST).save_pretrained(folder, safe_serialization=True)
    found = profile(str(folder), replace(QUICK, backend="onnxruntime"))
    assert [unit.fqn for unit in found.units] == [unit.fqn for unit in found.topology.units]
    for run, whole in enumerate(found.whole.hooked_latency_s.samples):
        assert sum(part.latency_s.samples[run] for part in found.parts) == pytest.approx(whole)
    assert found.mapped_share is not None
    assert 0.9 < found.mapped_share.median <= 1
    assert found.observed_slowdown is not None
    checks = {line.check for line in found.trust}
    assert {"the runtime's time lies in units", "the observed call is like the bare one"} <= checks
    assert "hooks cost nothing" not in checks
    assert found.options
    assert all(0 < option.share.median < 1 for option in found.options)


def test_badly_mapped_times_fail_the_trust_box(faked: Profile) -> None:
    from asdm_prof.profiler import checks as trust

    seen = Attribution(mapped=[0.90, 0.91], slowdown=[1.5, 1.6])
    lines = trust.box(faked.whole, list(faked.parts), [1.0] * 4, [1.0] * 4, None, {}, attribution=seen)
    failed = {line.check: line.value for line in lines if not line.passed}
    assert "90.5%" in failed["the runtime's time lies in units"]
    assert "1.550×" in failed["the observed call is like the bare one"]
