"""Files that a report takes in beside the profile: damage, frontier and the log of a distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asdm_prof import gather
from asdm_prof.records import Profile
from asdm_prof.renderers._drawn import DamageFile, FrontierFile, TrainingLog
from tests.prof import synthetic
from tests.prof.test_cli import run  # noqa: F401


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile's folder with damage and frontier beside it."""
    monkeypatch.chdir(tmp_path)
    source = synthetic.profile()
    source.save(tmp_path / "run" / "profile.json")
    synthetic.damage(source).save(tmp_path / "run" / "damage.json")
    synthetic.frontier(source).save(tmp_path / "run" / "frontier.json")
    return tmp_path / "run"


def gathered(folder: Path, **named: Any) -> Any:
    path = folder / "profile.json"
    return gather.report(Profile.load(path), path, **named)


def test_what_lies_beside_the_profile_is_found(folder: Path) -> None:
    found = gathered(folder)
    assert found.damage == synthetic.damage(synthetic.profile())
    assert found.frontier == synthetic.frontier(synthetic.profile())
    assert found.sources["damage"] == str(folder / "damage.json")


def test_what_was_made_for_another_model_is_left_or_refused(folder: Path) -> None:
    other = synthetic.damage(synthetic.profile()).model_copy(update={"family": "sdxl"})
    other.save(folder / "damage.json", force=True)
    assert gathered(folder).damage is None
    with pytest.raises(ValueError, match=r"made for another model \(sdxl\) than the profile \(sd15\)"):
        gathered(folder, damage=folder / "damage.json")
    known = other.model_copy(update={"teacher_config_sha256": synthetic.profile().config_sha256})
    known.save(folder / "damage.json", force=True)
    assert gathered(folder).damage == known, "a hash tells more than a name"


def test_damage_may_be_a_plain_number() -> None:
    point = {"latency_s": 1.0, "damage": 0.5, "edits": []}
    read = FrontierFile.parse({"schema": "asdm.frontier/1", "points": [point]}, "x")
    assert (read.points[0].damage.low, read.points[0].damage.value) == (0.5, 0.5)
    edit = {
        "edit": {"op": "remove_unit", "unit": "mid_block.attentions.0"},
        "damage": {"value": 1, "low": 0, "high": 2},
    }
    assert DamageFile.parse({"schema": "asdm.damage/1", "edits": [edit]}, "x").additivity is None


def test_a_log_keeps_its_terms_and_leaves_out_what_is_none(tmp_path: Path) -> None:
    lines = [
        '{"step": 0, "loss": 2.0, "rate": 1e-4}',
        '{"step": 1, "loss": 1.0, "vgg": 0.5, "note": "x"}',
        '{"step": 2, "lo',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    found = TrainingLog.load(tmp_path / "log.jsonl")
    assert found.steps == (0, 1)
    assert found.terms == {"loss": (2.0, 1.0), "vgg": (None, 0.5)}


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"step": 1}', "[1, 2]"])
def test_a_file_that_is_no_log_is_refused_in_one_sentence(run: Any, tmp_path: Path, text: str) -> None:  # noqa: F811
    synthetic.profile().save(tmp_path / "profile.json")
    (tmp_path / "log.jsonl").write_text(text)
    done = run("asdm-prof", "report", "profile.json", "--log", "log.jsonl", "-o", "out")
    assert done.code == 2
    assert "log.jsonl has no line with a step and a loss" in done.err
    assert not (tmp_path / "out").exists()
