"""Damage by propagating a unit's error: exact to first order, and compared with what was measured."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from asdm.plan.edits import RemoveUnit, ReplaceUnit
from asdm.unet import surgery
from asdm_prof.sensitivity import study
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks import propagation
from benchmarks.propagation import Propagation
from tests.tiny import SMALLEST, make_unet, unet_args

UNITS = ("down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "up_blocks.0.resnets.1")


def test_a_small_error_is_propagated_as_running_the_student_shows() -> None:
    """Skips included: what the first unit gives is used twice."""
    teacher = make_unet(**SMALLEST).requires_grad_(False)
    inputs = unet_args(batch=2, height=4, width=4) | {"return_dict": False}
    edited, measured = [], []
    with torch.no_grad():
        for unit in UNITS:
            new = copy.deepcopy(teacher.get_submodule(unit))
            last = new.proj_out if "attentions" in unit else new.conv2
            last.bias += 1e-3 * torch.randn(last.bias.shape, generator=torch.Generator().manual_seed(1))
            edited.append((unit, new))
            with surgery.swapped(teacher, {unit: new}):
                student = teacher(**inputs)[0]
            measured.append(float((student - teacher(**inputs)[0]).double().square().mean()))
    predicted = propagation.propagated(teacher, edited, inputs, probes=256, seed=0)
    assert predicted == pytest.approx(measured, rel=0.3)  # √(2 / 512) of noise in each, three times over


def test_every_edit_of_a_single_unit_is_predicted_and_compared(smallest_pipeline: Path, tmp_path: Path) -> None:
    settings = SensitivitySettings(weights=str(smallest_pipeline), data="emoji", prompts=2, timesteps=1)
    damage = study.measure_sensitivity(str(smallest_pipeline), settings, plans=0, replacements=["gri_attention"])
    damage.save(tmp_path / "damage.json")
    file = tmp_path / "propagation.json"
    propagation.main(str(smallest_pipeline), tmp_path / "damage.json", file, probes=4)
    result = Propagation.load(file)
    single = [one for one in damage.edits if isinstance(one.edit, RemoveUnit | ReplaceUnit)]
    assert [(one.edit, one.measured) for one in result.edits] == [(one.edit, one.damage.value) for one in single]
    assert min(one.predicted for one in result.edits) > 0
    assert result.damage_sha256 == damage.sha256()
    first = result.fits[0]
    assert (first.edits, first.count) == ("all", len(single))
    assert first.spearman.value > 0.5
    assert propagation.row(first)["number"] == str(len(single))

    damage.model_copy(update={"weights_sha256": "0" * 64}).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"other.json was measured on other weights or units than"):
        propagation.main(str(smallest_pipeline), tmp_path / "other.json", tmp_path / "new.json")
