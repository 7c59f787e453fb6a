"""Short runs side by side: trained, shipped and judged like the long one, and kept when more are asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from asdm.data.datasets import emoji
from asdm.mini import PIPELINE
from benchmarks.mini import trials
from benchmarks.mini.parts import unet
from benchmarks.mini.picture_found import matches
from benchmarks.mini.training import step_generator

MINI = PIPELINE.parent


@pytest.fixture
def trained_before(tmp_path: Path) -> Path:
    for part, where in (("vae", MINI / "weights" / "vae"), ("clip", MINI / "clip")):
        (tmp_path / part).symlink_to(where)
    return tmp_path


def few_drawings(*_: str) -> emoji.Emoji:
    data = emoji.open_data("train")
    return emoji.Emoji(*(getattr(data, field.name)[:8] for field in fields(data)))


def test_a_trial_is_trained_judged_and_kept(trained_before: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unet, "load_drawings", few_drawings)
    quick = replace(trials.FIRST, batch=2, compiled=False)
    monkeypatch.setattr(trials, "TRIALS", {"first": quick, "epsilon": replace(quick, prediction="epsilon")})
    monkeypatch.setattr(trials, "DRAWN", 6)
    monkeypatch.setattr(trials, "STEPS", 2)
    out = trained_before / "trials.json"
    trials.main(out, ["epsilon"], trained_before, pictures=4)
    (only,) = trials.Trials.load(out).trials
    assert only.recipe["prediction"] == "epsilon"
    assert only.pictures_seen == 4
    assert 0 <= only.picture_found.value <= 1
    trials.main(out, None, trained_before, pictures=2)
    kept, new = trials.Trials.load(out).trials
    assert kept == only
    assert (new.name, new.pictures_seen) == ("first", 2)


def test_a_run_goes_on_from_a_trained_pipeline(trained_before: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unet, "load_drawings", few_drawings)
    fresh, begun = (
        unet.training_task(1, trained_before, replace(trials.FIRST, batch=8, start=s)) for s in (None, PIPELINE)
    )
    shipped = UNet2DConditionModel.from_pretrained(PIPELINE / "unet")
    assert torch.equal(begun.module["unet"].conv_in.weight, shipped.conv_in.weight.float())
    losses = [task.loss(torch.arange(8), step_generator(0, 0))["mse"].item() for task in (fresh, begun)]
    assert losses[1] < 0.5 * losses[0]


def test_an_unknown_trial_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown trial 'warmer'; choose from first, "):
        trials.main(tmp_path / "trials.json", ["warmer"], tmp_path)


def test_a_picture_is_matched_where_its_own_real_one_is_nearest():
    real = torch.eye(4)
    drawn = torch.tensor([[0.9, 0.1, 0, 0], [0, 0.4, 0.6, 0], [0, 0, 1.0, 0]])
    assert matches(drawn, real[:3], real, candidates=4).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="5 pictures to choose from are needed, got 4"):
        matches(drawn, real[:3], real, candidates=5)
