"""The training of the UNet, from a trained pipeline."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from asdm.data.datasets import emoji
from asdm.mini import PIPELINE
from benchmarks.mini.parts import unet
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


def test_a_run_goes_on_from_a_trained_pipeline(trained_before: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unet, "load_drawings", few_drawings)
    fresh, begun = (unet.training_task(1, trained_before, start) for start in (None, PIPELINE))
    shipped = UNet2DConditionModel.from_pretrained(PIPELINE / "unet")
    assert torch.equal(begun.module["unet"].conv_in.weight, shipped.conv_in.weight.float())
    losses = [task.loss(torch.arange(8), step_generator(0, 0))["mse"].item() for task in (fresh, begun)]
    assert losses[1] < 0.5 * losses[0]
