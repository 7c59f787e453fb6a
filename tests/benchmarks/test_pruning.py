"""Whole networks narrowed by Torch-Pruning, and how they are judged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from asdm.models import example_inputs, loading
from asdm.models.families import load_family
from asdm_prof.sensitivity.calibration import make_calibration
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks import pruning
from benchmarks.pruning import Pruning


def test_every_way_of_pruning_is_judged(
    smallest_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "PROJECTIONS", 2)
    file = tmp_path / "pruning.json"
    pruning.main(str(smallest_pipeline), file, prompts=2, timesteps=1, channels=[0.3], time_budget=0.01, data="emoji")
    result = Pruning.load(file)
    ways = [(one.importance, one.everywhere_alike) for one in result.networks]
    assert ways == [(i, alike) for i in pruning.IMPORTANCES for alike in (True, False)]
    for one in result.networks:
        assert 0.3 < one.params_ratio < 0.9
        assert 0.3 < one.macs_ratio < 1
        assert one.damage.low <= one.damage.value <= one.damage.high
        assert one.damage.value > 0
        assert one.latency_ratio.median > 0
    assert len({one.damage.value for one in result.networks}) == 4


def test_the_share_goes_and_the_least_important_channel_first(tiny_pipeline: Path) -> None:
    family = load_family(str(tiny_pipeline))
    settings = SensitivitySettings(weights=str(tiny_pipeline), data="emoji", prompts=2, timesteps=1)
    teacher = loading.load_teacher(family, settings)
    data = make_calibration(family, teacher, settings)
    with torch.no_grad():  # a channel inside of a ResNet that does not reach the output
        marked = copy.deepcopy(teacher)
        inside = marked.get_submodule("down_blocks.0.resnets.0")
        inside.conv2.weight[:, 5] = 0
    inputs = example_inputs.unet_inputs(family)
    for gradients in (None, pruning.squared_gradients(marked, data)):
        student = pruning.pruned(marked, inputs, gradients, True, 0.5)
        kept = student.get_submodule("down_blocks.0.resnets.0").conv2.weight
        assert kept.shape[1] == inside.conv2.weight.shape[1] // 2
        assert (kept.abs().sum((0, 2, 3)) > 0).all()
        gate = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
        ratio = student.get_submodule(gate).out_features / marked.get_submodule(gate).out_features
        assert 0.45 < ratio < 0.7  # a GEGLU's halves share what either loses
    expected = [teacher(**data.inputs(slice(n, n + 1)))[0].detach() for n in range(2)]
    assert pruning.damage(teacher, data, expected).value == 0


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"pip install 'asdm-prof\[pruning\]'"):
        pruning.pruned(torch.nn.Linear(1, 1), {}, None, True, 0.1)
