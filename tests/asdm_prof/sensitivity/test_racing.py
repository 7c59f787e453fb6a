"""Which options run on, which edits are measured at all, and what a library of units changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asdm.distill.settings import UnitSettings
from asdm.distill.units import distill_units
from asdm.models.families import load_family
from asdm.plan.edits import RemoveUnit, ReplaceUnit
from asdm_prof.planner import plan as planner
from asdm_prof.planner.choices import make_choices
from asdm_prof.records import Damage
from asdm_prof.sensitivity import measure, racing, study, variants
from asdm_prof.sensitivity.settings import SensitivitySettings

FEW = SensitivitySettings(data="emoji", prompts=4, timesteps=2, threads=1)
NAMES = ["pointwise_conv", "narrow_resnet"]


def errors(*means: float, spread: float = 0.01) -> np.ndarray:
    """By prompt: every option has the same luck with a prompt."""
    luck = np.random.default_rng(0).normal(0, spread, 16)
    return np.array(means)[:, None] + luck


def test_an_option_that_another_of_its_unit_beats_with_confidence_is_dropped() -> None:
    a, b = frozenset(["a"]), frozenset(["b"])
    found = racing.survivors([a, a, a, b], [0.5, 0.4, 0.6, 0.1], errors(1.0, 2.0, 3.0, 9.0))
    assert found == {0, 2, 3}, "1 saves less than 0 and does more; 2 saves most; 3 is alone in its unit"


def test_what_cannot_be_told_apart_runs_on() -> None:
    a = frozenset(["a"])
    noisy = errors(1.0, 1.001) + np.random.default_rng(1).normal(0, 0.1, (2, 16))
    assert racing.survivors([a, a], [0.5, 0.4], noisy) == {0, 1}
    assert racing.survivors([a, a], [None, 0.4], errors(1.0, 2.0)) == {0, 1}, "without a time none can be beaten"


def test_no_more_than_the_nearest_to_the_front_run_on() -> None:
    n = racing.MOST + 6
    savings = [0.01 * i for i in range(n)]
    found = racing.survivors([frozenset(["a"])] * n, savings, errors(*[1.0 + i for i in range(n)]))
    assert len(found) == racing.MOST
    values = [*np.linspace(1, 2, 10), *np.linspace(1.0001, 2.0001, 10)]  # a front of 10, and one just behind it
    noisy = errors(*values) + np.random.default_rng(2).normal(0, 0.1, (20, 16)) * np.linspace(0, 1, 20)[:, None]
    assert len(racing.survivors([frozenset(["a"])] * 20, [0.1 * (i % 10) for i in range(20)], noisy)) <= racing.MOST


def test_all_is_every_replacement_but_experts(tiny_unet: torch.nn.Module) -> None:
    found = [one.edits[0] for one in variants.measurable_edits(tiny_unet, ["all"])]
    replaced = {edit.with_ for edit in found if isinstance(edit, ReplaceUnit)}
    assert "cond_conv" not in replaced
    assert {"token_merging", "low_rank_conv", "no_self_attention"} < replaced
    per_unit = [sum(getattr(edit, "unit", "") == fqn for edit in found) for fqn in ("mid_block.attentions.0",)]
    assert max(per_unit) <= 25


@pytest.fixture(scope="module")
def raced(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Damage, Damage]:
    """A tiny teacher's damage as the weights alone make units, and with units that were fitted."""
    folder, teacher = tmp_path_factory.mktemp("units"), str(tiny_pipeline)
    edits = UnitSettings(options="pointwise_conv", data="emoji", split="held_out", calibration=32, batch=8, threads=1)
    distill_units(teacher, folder, edits)
    plain = study.measure_sensitivity(teacher, FEW, plans=0, replacements=NAMES, race=True)
    return plain, study.measure_sensitivity(teacher, replace(FEW, units=str(folder)), plans=0, replacements=NAMES)


def test_the_race_measures_fewer_edits_and_keeps_what_it_dropped(raced: tuple[Damage, Damage]) -> None:
    plain, whole = raced
    assert len(plain.edits) + len(plain.dropped) == len(whole.edits)
    assert plain.dropped
    assert plain.work.students == len(plain.edits)


def test_fitted_units_do_less_damage(raced: tuple[Damage, Damage]) -> None:
    plain, fitted = raced
    before = {str(one.edit): one.damage.value for one in (*plain.edits, *plain.dropped)}
    pairs = [(before[str(one.edit)], one.damage.value) for one in fitted.edits
             if isinstance(one.edit, ReplaceUnit) and one.edit.with_ == "pointwise_conv"]  # fmt: skip
    assert sum(after < b for b, after in pairs) > 0.8 * len(pairs)
    same = [(before[str(one.edit)], one.damage.value) for one in fitted.edits if isinstance(one.edit, RemoveUnit)]
    assert np.mean([after for _, after in same]) == pytest.approx(np.mean([b for b, _ in same]), rel=1.0)
    assert plain.units_sha256 is None
    assert fitted.units_sha256


def test_a_plan_by_it_takes_what_was_measured(
    raced: tuple[Damage, Damage], tiny_pipeline: Path, tmp_path: Path
) -> None:
    _, fitted = raced
    profile = study.macs_profile(load_family(str(tiny_pipeline)), options=",".join(NAMES))
    choices = {str(c.edit): c.damage for c in make_choices(profile, damage=fitted) if isinstance(c.edit, ReplaceUnit)}
    measured_ = {str(one.edit): one.damage.value for one in fitted.edits if isinstance(one.edit, ReplaceUnit)}
    assert choices == measured_
    assert planner.make_plan(profile, "0.8", damage=fitted).damage_sha256 == fitted.sha256()
    assert Damage.load(fitted.save(tmp_path / "damage.json")).units_sha256 == fitted.units_sha256
    assert measure.edit_damage((RemoveUnit(unit="a"),), np.ones((2, 2))).damage.value == 1
