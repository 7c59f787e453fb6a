"""Files that a report takes in beside the profile: damage, frontier and the log of a distillation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asdm.plan.edits import Prediction, Proof
from asdm_prof.records import Profile, TrainingLog
from asdm_prof.renderers import _collect
from tests.asdm_prof import synthetic


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile's folder with damage and frontier beside it."""
    monkeypatch.chdir(tmp_path)
    source = synthetic.profile()
    source.save(tmp_path / "run" / "profile.json")
    synthetic.damage_of(source).save(tmp_path / "run" / "damage.json")
    synthetic.frontier_of(source).save(tmp_path / "run" / "frontier.json")
    synthetic.budgets_of(source).save(tmp_path / "run" / "budgets.json")
    return tmp_path / "run"


def gathered(folder: Path, **named: Any) -> Any:
    path = folder / "profile.json"
    return _collect.report(Profile.load(path), path, **named)


def test_what_lies_beside_the_profile_is_found(folder: Path) -> None:
    found = gathered(folder)
    assert found.damage == synthetic.damage_of(synthetic.profile())
    assert found.frontier == synthetic.frontier_of(synthetic.profile())
    assert found.extra == {}
    assert found.sources["damage"] == str(folder / "damage.json")


def test_of_several_the_one_that_was_measured_last_is_taken(folder: Path) -> None:
    """Whichever a copy wrote last."""
    early = synthetic.damage_of(synthetic.profile())
    late = early.model_copy(update={"created_utc": "2099-01-01T00:00:00Z"})
    late.save(folder / "damage-late.json")
    early.save(folder / "damage.json", force=True)
    assert gathered(folder).damage == late


def test_damage_from_before_and_after_training_are_both_found(folder: Path) -> None:
    before = synthetic.damage_of(synthetic.profile())
    after = before.model_copy(update={"units_sha256": "1" * 64, "created_utc": "2099-01-01T00:00:00Z"})
    elsewhere = after.model_copy(update={"data": "folder:photos", "created_utc": "2099-01-02T00:00:00Z"})
    assert gathered(folder).other_damage is None
    elsewhere.save(folder / "damage-photos.json")
    assert gathered(folder, damage=folder / "damage.json").other_damage is None, "of other pictures"
    after.save(folder / "damage-after.json")
    found = gathered(folder, damage=folder / "damage.json")
    assert (found.damage, found.other_damage) == (before, after)
    assert found.sources["other damage"] == str(folder / "damage-after.json")
    again = gathered(folder, damage=folder / "damage-after.json")
    assert (again.damage, again.other_damage) == (after, before)


def test_what_was_made_for_another_model_is_left_or_refused(folder: Path) -> None:
    other = synthetic.damage_of(synthetic.profile()).model_copy(update={"teacher_config_sha256": "f" * 64})
    other.save(folder / "damage.json", force=True)
    assert gathered(folder).damage is None
    with pytest.raises(ValueError, match=r"damage.json: the damage was measured on sd15 \(config ffffffffffff\)"):
        gathered(folder, damage=folder / "damage.json")
    made = synthetic.frontier_of(synthetic.profile(seed=1)).save(folder / "other.json")
    with pytest.raises(ValueError, match=r"other.json: the frontier was made from another profile"):
        gathered(folder, frontier=made)


def test_the_plan_stands_on_the_frontier_only_where_both_measure_damage_alike() -> None:
    source = synthetic.full_report()
    assert source.own_point() is None, "the plan has no proof"
    proof = Proof(status="optimal", damage=0.2, bound=0.2, gap=0.0)
    told = Prediction(latency_s=3.5, ratio=0.85, low=0.83, high=0.87)
    update = {"predicted": told, "proof": proof, "damage_from": "structural prior"}
    alike = replace(source, plan=source.plan.model_copy(update=update))
    assert alike.own_point() == (0.85, 0.2)
    apart = source.plan.model_copy(update=update | {"damage_sha256": "1" * 64})
    assert replace(source, plan=apart).own_point() is None
    point = source.frontier.points[3]
    same = source.plan.model_copy(update={"edits": point.edits[::-1]})
    assert replace(source, plan=same).own_point() == (point.ratio, point.damage)


def test_a_log_keeps_its_terms_and_leaves_out_what_is_none(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "stage": "compressed", "stage_step": 1, "loss": 2.0, "gradient_norm": null}',
        '{"step": 2, "stage": "combined", "stage_step": 1, "loss": 1.0, "perceptual": 0.5, "images_per_s": 3.0}',
        '{"step": 3, "loss": 1' + "0" * 5000 + "}",
        '{"step": 3, "loss": ' + "[" * 5000,
        '{"step": 1e999, "loss": 1.0}',
        '{"step": 3, "lo',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    found = TrainingLog.load(tmp_path / "log.jsonl")
    assert found.steps == (1, 2)
    assert found.terms == {"loss": (2.0, 1.0), "perceptual": (None, 0.5)}
    assert found.stages == {"compressed": 1, "combined": 2}


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"step": 1}', "[1, 2]"])
def test_a_file_that_is_no_log_is_refused_in_one_sentence(run: Any, tmp_path: Path, text: str) -> None:
    synthetic.profile().save(tmp_path / "profile.json")
    (tmp_path / "log.jsonl").write_text(text)
    done = run("asdm-prof", "report", "profile.json", "--log", "log.jsonl", "-o", "out")
    assert done.code == 2
    assert "log.jsonl has no line with a step and a loss" in done.err
    assert not (tmp_path / "out").exists()
