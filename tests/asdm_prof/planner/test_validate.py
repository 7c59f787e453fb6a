"""Random plans: legal, spread and repeatable; what their errors teach, and what a plan makes of that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from asdm.models import loading
from asdm.models.families import load_family
from asdm.models.sources import weights_to_validate
from asdm.plan.edits import AnyEdit
from asdm.plan.legality import resolve
from asdm_prof.planner import plan as planner, validate
from asdm_prof.planner.choices import make_choices
from asdm_prof.planner.schedule.validate import (
    ScheduleValidateSettings,
    ScheduleValidationRun,
    validate_schedules,
)
from asdm_prof.planner.settings import ValidateSettings
from asdm_prof.profiler.profile import profile as measure_profile
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Profile, Validation
from asdm_prof.renderers import html
from asdm_prof.renderers.html.sections import validation as validation_section
from tests.asdm_prof import synthetic

FAKE = ValidateSettings(plans=5, seed=1, time_budget_s=5)


@pytest.fixture(scope="module")
def validated(faked: Profile) -> Validation:
    return validate.validate("sd15", faked, FAKE)


def test_random_plans_are_legal_spread_over_the_range_and_repeatable() -> None:
    profile = synthetic.profile()
    drawn = validate.draw_plans(profile, 12, seed=3)
    ratios = [planner.price(profile, edits).ratio for edits in drawn]  # price raises for an illegal plan
    assert max(ratios) == pytest.approx(0.93, abs=0.02)
    assert min(ratios) == pytest.approx(0.42, abs=0.02)
    assert np.all(np.diff(ratios) < 0)
    assert max(-np.diff(ratios)) < 2 * 0.55 / 12
    assert drawn == validate.draw_plans(profile, 12, seed=3)
    assert drawn != validate.draw_plans(profile, 12, seed=4)


def test_random_plans_hold_every_kind_of_edit() -> None:
    profile = synthetic.profile()
    drawn = validate.draw_plans(profile, 20, seed=0)
    assert {edit.op for edits in drawn for edit in edits} == {
        "remove_layer", "remove_unit", "remove_block", "replace_unit",
    }  # fmt: skip
    for edits in drawn:
        resolve(profile.topology, edits)


def test_experts_are_drawn_only_beside_what_was_pruned(faked: Profile) -> None:
    drawn = validate.draw_plans(faked, 20, seed=0)
    for edits in drawn:
        pruned = {edit.block for edit in edits if edit.op == "remove_layer"}
        pruned |= {e.unit.partition(".resnets.")[0] for e in edits if e.op == "remove_unit"}
        assert {unit.partition(".resnets.")[0] for unit in experts_in(edits)} <= pruned
        resolve(faked.topology, edits)
    taken = [len(experts_in(edits)) for edits in drawn]
    assert 0 < np.count_nonzero(taken) < len(taken)


def experts_in(edits: tuple[AnyEdit, ...]) -> list[str]:
    return [edit.unit for edit in edits if edit.op == "replace_unit" and edit.with_ == "cond_conv"]


def test_savings_by_kind_add_up_to_the_prediction() -> None:
    profile = synthetic.profile()
    for edits in validate.draw_plans(profile, 6, seed=5):
        saved = planner.saved_by_kind(profile, edits)
        assert set(saved) == {edit.op for edit in edits}
        assert 1 - sum(saved.values()) == pytest.approx(planner.price(profile, edits).ratio)


def test_a_runtime_that_adds_up_is_predicted_well(validated: Validation) -> None:
    """The fake runtime is additive but for its noise of 1 % a part."""
    assert len(validated.plans) == 5
    assert validated.mape < 0.01
    assert abs(validated.bias) < 0.01
    assert validated.rank_correlation == pytest.approx(1.0)
    errors = [plan.measured_ratio - plan.predicted_ratio for plan in validated.plans]
    assert validated.mape == pytest.approx(np.mean(np.abs(errors)))
    assert validated.coverage == np.mean([p.low <= p.measured_ratio <= p.high for p in validated.plans])


def test_a_validation_survives_its_file(validated: Validation, tmp_path: Path) -> None:
    path = validated.save(tmp_path / "validate.json")
    assert Validation.load(path) == validated


@pytest.mark.serial
def test_students_of_a_real_unet_are_measured_in_pairs(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named folder's own weights run, also where the profile was taken with random ones."""
    timed = ProfileSettings(time_budget_s=2, min_rounds=2, threads=1, weights="random")
    profile = measure_profile(str(tiny_folder), timed)
    loaded, load_unet = list[str](), loading.load_unet

    def load(family: Any, weights: str, *more: Any) -> Any:
        loaded.append(weights)
        return load_unet(family, weights, *more)

    monkeypatch.setattr(loading, "load_unet", load)
    found = validate.validate(str(tiny_folder), profile, ValidateSettings(plans=3, min_rounds=2, time_budget_s=1))
    assert [len(plan.teacher_s) == len(plan.student_s) >= 4 for plan in found.plans] == [True] * 3
    assert found.plans[0].measured_ratio > found.plans[-1].measured_ratio
    assert found.mape < 0.25
    assert profile.weights == "random"
    assert loaded == [found.weights] == [str(tiny_folder)]


def test_weights_are_those_that_were_named(faked: Profile, tiny_folder: Path, tmp_path: Path) -> None:
    named, bare = load_family(str(tiny_folder)), load_family("sd15")
    assert weights_to_validate(named, None, "random") == str(tiny_folder)
    assert weights_to_validate(named, "random", "elsewhere/") == "random"
    assert weights_to_validate(bare, None, "random") == "random"
    assert weights_to_validate(load_family("mini"), None, "shipped") == "shipped"
    (tmp_path / "unet.json").write_text((tiny_folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"is a config without weights; name some .*, or --weights random"):
        weights_to_validate(load_family(str(tmp_path / "unet.json")), None, "random")


def test_an_interrupted_run_is_continued(faked: Profile, tmp_path: Path, validated: Validation) -> None:
    run_file = tmp_path / "validate.json.run"

    def interrupt(stage: str, calls: int, eta_s: float | None) -> None:
        if stage.startswith("plan 3 of 5") and calls:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate.validate("sd15", faked, FAKE, run_file, interrupt)
    kept = validate.ValidationRun.load(run_file).plans
    assert len(kept) == 2
    stages: list[str] = []
    found = validate.validate("sd15", faked, FAKE, run_file, lambda stage, *_: stages.append(stage))
    assert found.plans[:2] == kept
    assert [plan.edits for plan in found.plans] == [plan.edits for plan in validated.plans]
    assert not [stage for stage in stages if stage.startswith(("plan 1 ", "plan 2 "))]


def test_schedules_are_measured_and_an_interrupted_run_is_continued(tiny_folder: Path, tmp_path: Path) -> None:
    profile = measure_profile(str(tiny_folder), ProfileSettings(backend="fake", threads=1))
    settings, run_file = ScheduleValidateSettings(schedules=3, calls=3), tmp_path / "validate-schedules.json.run"

    def interrupt(stage: str, calls: int, eta_s: float | None) -> None:
        if stage == "schedule 3 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate_schedules(str(tiny_folder), profile, settings, run_file, interrupt)
    assert not torch.is_inference_mode_enabled()
    kept = ScheduleValidationRun.load(run_file).schedules
    assert len(kept) == 2
    found = validate_schedules(str(tiny_folder), profile, settings, run_file)
    assert found.schedules[:2] == kept
    assert len(found.schedules) == 3
    assert all(len(one.plain_call_s) == len(one.schedule_s) + 1 for one in found.schedules)
    assert found.macs_exact
    assert (found.profile_sha256, found.threads, found.weights) == (profile.sha256(), 1, profile.weights)
    with pytest.raises(ValueError, match="not of sd15"):
        validate_schedules("sd15", profile, settings)
    other = ScheduleValidateSettings(schedules=3, calls=3, weights="random")
    assert validate_schedules(str(tiny_folder), profile, other).weights == "random"


def test_another_runs_file_is_refused(faked: Profile, tmp_path: Path) -> None:
    run_file = tmp_path / "validate.json.run"
    validate.ValidationRun(run_sha256="0" * 64).save(run_file)
    with pytest.raises(ValueError, match=r"validate.json.run is an unfinished run of another profile"):
        validate.validate("sd15", faked, FAKE, run_file)


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("sd15", {"plans": 2}, "plans must be at least 3, got 2"),
        ("sd15", {"time_budget_s": 0}, r"time_budget_s \(--time-budget\) must be above 0, got 0"),
        ("sd21_base", {}, "the profile is of sd15, not of sd21_base"),
    ],
)
def test_bad_input_gets_one_sentence(faked: Profile, family: str, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate.validate(family, faked, ValidateSettings(**change))


# ---------------------------------------------------------------------------------------------- learning


def test_an_error_that_follows_the_savings_is_learnt() -> None:
    """Students are slower than predicted by a tenth of what removing units saves."""
    plans = [synthetic.validated_plan(p, 0.1 * (1 - p)) for p in np.linspace(0.4, 0.95, 12)]
    learnt = validate.learn(plans)
    assert learnt.helps
    assert learnt.factors["remove_unit"] == pytest.approx(0.1, abs=0.002)
    assert learnt.rms_with < 0.1 * learnt.rms_without


def test_an_error_that_follows_nothing_is_not_corrected() -> None:
    """Errors of ±1 % in turns: what the other plans teach makes each of them worse."""
    plans = [synthetic.validated_plan(p, 0.01 * (-1) ** i) for i, p in enumerate(np.linspace(0.4, 0.95, 12))]
    figures = validate.judge(plans)
    assert not figures["correction"].helps
    assert figures["sigma"] == pytest.approx(0.01)
    assert figures["mape"] == figures["p95"] == pytest.approx(0.01)
    assert figures["bias"] == pytest.approx(0, abs=1e-12)
    assert figures["coverage"] == figures["within_budget"] == 1.0


def test_coverage_counts_both_sides_and_budgets_one() -> None:
    """One student 10 % faster than predicted, one 10 % slower: two misses of an interval, one of a budget."""
    errors = [0.001, -0.001, 0.002, -0.1, 0.1, -0.002, 0.001, -0.001, 0.002, -0.002] + 20 * [0.001, -0.001]
    plans = [synthetic.validated_plan(p, e) for p, e in zip(np.linspace(0.4, 0.95, 50), errors, strict=True)]
    figures = validate.judge(plans)
    assert figures["coverage"] == pytest.approx(48 / 50)
    assert figures["calibrated_coverage"] == pytest.approx(48 / 50)
    assert figures["within_budget"] == pytest.approx(49 / 50)


# ---------------------------------------------------------------------------------------------- planning with it


@pytest.mark.parametrize("wide", [0.05, 0.005])
def test_errors_below_what_the_machine_can_tell_are_named_as_such(wide: float, tmp_path: Path) -> None:
    sharp = synthetic.validation(synthetic.profile(), [0.02, -0.01, 0.03, -0.02])
    plans = tuple(
        plan.model_copy(
            update={"measured_low": plan.measured_ratio - wide, "measured_high": plan.measured_ratio + wide}
        )
        for plan in sharp.plans
    )
    found = sharp.model_copy(update={"plans": plans})
    assert found.blur == pytest.approx(wide)
    said = "known to ±5.0 % only"
    assert any(said in line for line in validation_section.lessons(found)) == (wide > found.mape)
    html.render(replace(synthetic.report(), validation=found), tmp_path)
    assert (said in (tmp_path / "report.html").read_text().replace("\u00a0", " ")) == (wide > found.mape)


def test_the_margin_is_of_the_measured_error() -> None:
    profile = synthetic.profile()
    validation = synthetic.validation(profile, [0.03, -0.03] * 6)
    expected = student_t.ppf(0.95, 12) * 0.03
    assert planner.margin(profile, 0.95, validation) == pytest.approx(expected)
    plan = planner.make_plan(profile, "0.8", 0.95, validation)
    assert plan.predicted.ratio <= 0.8 - expected
    assert plan.predicted.high - plan.predicted.ratio == pytest.approx(student_t.ppf(0.975, 12) * 0.03)
    assert plan.validation_sha256 == validation.sha256()


def test_an_approved_correction_moves_the_prediction() -> None:
    profile = synthetic.profile()
    validation = synthetic.validation(profile, [0.1 * (1 - p) for p in np.linspace(0.4, 0.95, 12)])
    assert validation.correction.helps
    edits = next(e for e in validate.draw_plans(profile, 6, seed=0) if any(edit.op == "remove_unit" for edit in e))
    plain, corrected = planner.price(profile, edits), planner.price(profile, edits, validation)
    saved = planner.saved_by_kind(profile, edits)["remove_unit"]
    assert corrected.ratio - plain.ratio == pytest.approx(validation.factors["remove_unit"] * saved)
    chosen = [c for c in make_choices(profile, validation) if all(edit in edits for edit in c.edits)]
    assert 1 - sum(c.saving for c in chosen) == pytest.approx(corrected.ratio)


def test_a_validation_of_another_setting_is_refused() -> None:
    profile = synthetic.profile()
    other = synthetic.validation(profile, [0.01] * 4).model_copy(update={"dtype": "bf16"})
    with pytest.raises(ValueError, match=r"measured with dtype bf16, and the profile with fp32"):
        planner.make_plan(profile, "0.8", 0.95, other)


def test_a_plan_without_a_validation_keeps_its_hash() -> None:
    """Files written before validations existed are still found by their hash."""
    assert "validation_sha256" not in planner.make_plan(synthetic.profile(), "0.8").to_json()
