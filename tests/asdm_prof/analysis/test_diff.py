"""diff: exact where nothing is noisy, careful where something is, and refused where it means nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asdm.measure.statistics import estimate, latency
from asdm.models import loading
from asdm_prof.analysis import diff
from asdm_prof.analysis.rank import rank
from asdm_prof.profiler import profile as profiler
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import PartRecord, Profile
from tests.asdm_prof import synthetic
from tests.commands import Result, refused

SLOW = "up_blocks.1.resnets.2"


def slower(profile: Profile, fqn: str, factor: float) -> Profile:
    """The same profile, with one unit's samples multiplied."""

    def change(part: PartRecord) -> PartRecord:
        if part.fqn != fqn:
            return part
        samples = [factor * s for s in part.latency_s.samples]
        whole = profile.whole.hooked_latency_s.samples
        return part.model_copy(
            update={"latency_s": latency(samples), "share": estimate(np.asarray(samples) / np.asarray(whole))}
        )

    return profile.model_copy(update={"units": tuple(map(change, profile.units))})


def elsewhere(profile: Profile, **facts: str) -> Profile:
    return profile.model_copy(update={"environment": profile.environment | facts})


# ---------------------------------------------------------------------------------------------- differences


def test_a_profile_does_not_differ_from_itself() -> None:
    found = diff.diff(synthetic.profile(), synthetic.profile())
    assert found.unlike == {}
    assert [part.fqn for part in found.parts] == [part.fqn for part in synthetic.profile().parts]
    for part in (found.whole, *found.parts):
        for metric in diff.METRICS:
            change = getattr(part, metric)
            assert change.ratio is None or change.ratio.median == 1
            assert not change.is_real


def test_two_runs_of_the_same_differ_by_noise_only() -> None:
    """Two seeds of 2 % noise: nothing is 5 % slower beyond doubt."""
    found = diff.diff(synthetic.profile(), synthetic.profile(seed=1))
    assert diff.failures(found, [diff.parse_condition("unit:p50>5%")]) == []


def test_a_slower_unit_is_the_one_that_differs() -> None:
    profile = synthetic.profile()
    found = diff.diff(profile, slower(synthetic.profile(seed=1), "mid_block.resnets.1", 1.2))
    failed = diff.failures(found, [diff.parse_condition("unit:p50>10%")])
    assert [part.fqn for _, part in failed] == ["mid_block.resnets.1"]
    change = failed[0][1].p50
    assert change.ratio is not None
    assert change.ratio.low < 1.2 < change.ratio.high
    assert change.b / change.a == pytest.approx(change.ratio.median)


def test_units_that_only_one_has_are_named() -> None:
    profile = synthetic.profile()
    fewer = profile.model_copy(update={"units": profile.units[1:]})
    assert diff.diff(profile, fewer).only_in_a == (profile.units[0].fqn,)
    assert diff.diff(fewer, profile).only_in_b == (profile.units[0].fqn,)


def test_what_had_no_macs_and_now_has_some_fails_any_limit() -> None:
    profile = synthetic.profile()
    other = profile.part("other")
    more = profile.model_copy(
        update={"glue": tuple(other.model_copy(update={"conv_macs": 5}) if p == other else p for p in profile.glue)}
    )
    failed = diff.failures(diff.diff(profile, more), [diff.parse_condition("other:macs>50%")])
    assert [part.fqn for _, part in failed] == ["other"]


# ---------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("text", "where", "metric", "above", "limit"),
    [
        ("unit:p50>5%", "unit", "p50", True, 0.05),
        (" whole:p95 > 12.5% ", "whole", "p95", True, 0.125),
        ("up_blocks.3.*:macs<-1%", "up_blocks.3.*", "macs", False, -0.01),
        ("*.attentions.?:share>0%", "*.attentions.?", "share", True, 0.0),
    ],
)
def test_conditions_are_read(text: str, where: str, metric: str, above: bool, limit: float) -> None:
    found = diff.parse_condition(text)
    assert (found.where, found.metric, found.above, found.limit) == (where, metric, above, pytest.approx(limit))


@pytest.mark.parametrize(
    "text", ["", "p50>5%", "unit:p50>5", "unit:p99>5%", "unit:p50=5%", "unit:p50>five%", "unit:>5%"]
)
def test_what_is_no_condition_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a condition.*'unit:p50>5%'.*p50, p95, share, macs, params"):
        diff.parse_condition(text)


def test_a_pattern_chooses_parts() -> None:
    found = diff.diff(synthetic.profile(), slower(synthetic.profile(), "up_blocks.3.attentions.1", 2))
    for where, n in (("up_blocks.3.*", 1), ("*.attentions.*", 1), ("down_blocks.*", 0), ("unit", 1), ("whole", 0)):
        assert len(diff.failures(found, [diff.parse_condition(f"{where}:p50>50%")])) == n
    with pytest.raises(ValueError, match=r"no unit is named 'up_block\.3'"):
        diff.failures(found, [diff.parse_condition("up_block.3:p50>5%")])


# ---------------------------------------------------------------------------------------------- fingerprint


@pytest.mark.parametrize("name", ["cpu", "cores", "torch", "malloc"])
def test_another_machine_or_runtime_is_unlike(name: str) -> None:
    profile = synthetic.profile()
    assert set(diff.unlike(profile, elsewhere(profile, **{name: "another"}))) == {name}


def test_only_the_runtime_that_was_used_decides_by_its_version() -> None:
    profile = elsewhere(synthetic.profile(), onnxruntime="1.0")
    other = elsewhere(profile, onnxruntime="2.0")
    assert diff.unlike(profile, other) == {}
    used = {"backend": "onnxruntime"}
    assert set(diff.unlike(profile.model_copy(update=used), other.model_copy(update=used))) == {"onnxruntime"}


def test_load_and_helpers_do_not_decide() -> None:
    profile = synthetic.profile()
    assert diff.unlike(profile, elsewhere(profile, load_1min="9", diffusers="1.0", python="3.14")) == {}


@pytest.mark.parametrize("change", [{"dtype": "bf16"}, {"batch": 2}, {"threads": 9}, {"size": 256}])
def test_another_setting_is_unlike(change: dict[str, Any]) -> None:
    profile = synthetic.profile()
    assert set(diff.unlike(profile, profile.model_copy(update=change))) == set(change)


def test_cards_of_one_name_are_alike_and_a_mode_has_the_version_of_its_runtime() -> None:
    first = elsewhere(synthetic.profile(), gpu="NVIDIA H100", compiled="1").model_copy(
        update={"device": "cuda", "backend": "compiled:reduce-overhead"}
    )
    assert diff.unlike(first, first.model_copy(update={"device": "cuda:1"})) == {}
    assert set(diff.unlike(first, elsewhere(first, gpu="NVIDIA A100"))) == {"gpu"}
    assert set(diff.unlike(first, elsewhere(first, compiled="2"))) == {"compiled"}
    assert set(diff.unlike(first, first.model_copy(update={"backend": "compiled"}))) == {"backend"}


# ---------------------------------------------------------------------------------------------- as typed


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A profile, and another run in which one unit is a quarter slower."""
    a = synthetic.profile().save(tmp_path / "a.json")
    return a, slower(synthetic.profile(seed=1), "mid_block.resnets.1", 1.25).save(tmp_path / "b.json")


def test_diff_names_the_slow_unit_and_exits_with_1(run: Any, two: tuple[Path, Path]) -> None:
    found: Result = run("asdm-prof", "diff", *two, "--fail-on", "unit:p50>10%")
    assert found.code == 1
    assert [line for line in found.err.splitlines() if "Failed" in line] == [
        line for line in found.err.splitlines() if "mid_block.resnets.1" in line
    ]
    assert "mid.r1" in found.out
    quiet: Result = run("asdm-prof", "diff", *two, "--fail-on", "whole:p50>10%")
    assert quiet.code == 0
    assert "Failed" not in quiet.err


def test_diff_as_json(run: Any, two: tuple[Path, Path]) -> None:
    import json

    found: Result = run("asdm-prof", "diff", *two, "--fail-on", "unit:p50>10%", "--json")
    data = json.loads(found.out)
    assert data["schema"] == "asdm.diff/1"
    assert [row["fqn"] for row in data["failed"]] == ["mid_block.resnets.1"]
    assert len(data["parts"]) == 48


def test_diff_refuses_unlike_environments(run: Any, two: tuple[Path, Path], tmp_path: Path) -> None:
    other = elsewhere(synthetic.profile(), cpu="another CPU").save(tmp_path / "c.json")
    refused(run("asdm-prof", "diff", two[0], other), "made-up CPU", "another CPU", "--force", code=4)
    forced: Result = run("asdm-prof", "diff", two[0], other, "--force", "--format", "csv")
    assert forced.code == 0
    assert "Warning: the environments differ" in forced.err
    assert forced.out.startswith("fqn,label,kind,p50_a,p50_b,p50_ratio_median")


# ---------------------------------------------------------------------------------------------- planted


def profile_of(unet: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setattr(loading, "load_unet", lambda *_, **__: unet)
    return profiler.profile(str(folder), ProfileSettings(time_budget_s=0.5, min_rounds=5, threads=1))


@pytest.mark.serial
def test_a_planted_slow_unit_is_named_by_profile_rank_and_diff(
    run: Any,
    tiny_unet: nn.Module,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sleep of 30 ms in one ResNet of a UNet whose other units take about a millisecond each."""
    before = profile_of(tiny_unet, tiny_folder, monkeypatch).save(tmp_path / "before.json")
    unit: Any = tiny_unet.get_submodule(SLOW)
    forward = unit.forward

    def sleepy(*args: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(0.03)
        return forward(*args, **kwargs)

    unit.forward = sleepy
    planted = profile_of(tiny_unet, tiny_folder, monkeypatch)
    assert max(planted.units, key=lambda part: part.share.median).fqn == SLOW
    assert rank(planted)[0].fqn == SLOW
    after = planted.save(tmp_path / "after.json")
    found: Result = run("asdm-prof", "diff", before, after, "--fail-on", "unit:p50>1000%")
    assert found.code == 1
    failed = [line for line in found.err.splitlines() if line.startswith("Failed")]
    assert len(failed) == 1
    assert SLOW in failed[0]


@pytest.mark.serial
def test_planted_noise_is_said_by_the_trust_box(
    tiny_unet: nn.Module, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ResNet sleeps up to 5 ms, by chance."""
    dice = random.Random(0)
    for part in tiny_unet.modules():
        if type(part).__name__ == "ResnetBlock2D":
            part.register_forward_hook(lambda *_: time.sleep(0.005 * dice.random() ** 4))
    noisy = profile_of(tiny_unet, tiny_folder, monkeypatch)
    failed = {line.check: line for line in noisy.trust if not line.passed}
    assert "the machine was quiet" in failed
    assert failed["the machine was quiet"].remedy
