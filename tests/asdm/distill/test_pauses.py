"""A run that pauses: what its student is by then can be used, and going on changes no bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asdm.cli import progress
from asdm.distill import recipes
from asdm.distill.stages import Recipe, Stage
from asdm.models import student as students
from asdm.models.families import load_family
from asdm.models.loading import load_unet
from asdm.records.distill import DistillResult
from tests.asdm.distill.training import WEIGHTS, go, log_of


@pytest.mark.parametrize(
    ("recipe", "pauses"), [(recipes.bk_sdm, (2,)), (recipes.progressive_incubation, (1, 2, 3))], ids=["one", "two"]
)
def test_pauses_change_no_bit(tiny_pipeline: Path, tmp_path: Path, recipe: Recipe, pauses: tuple[int, ...]) -> None:
    """In the first stage, where one stage ends and the next begins, and in the last stage."""
    go(tiny_pipeline, tmp_path / "whole", recipe=recipe, steps=4)
    for until in pauses:
        result = go(tiny_pipeline, tmp_path / "paused", recipe=recipe, steps=4, until=until)
        assert DistillResult.load(tmp_path / "paused" / "distill.json") == result
        assert json.loads((tmp_path / "paused" / "paused" / "paused.json").read_text())["step"] == until
        assert not (tmp_path / "paused" / WEIGHTS).exists()
    finished = go(tiny_pipeline, tmp_path / "paused", recipe=recipe, steps=4)
    assert (tmp_path / "paused" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert log_of(tmp_path / "paused") == log_of(tmp_path / "whole")
    assert not (tmp_path / "paused" / "paused").exists()
    assert "paused_at" not in finished.to_json()


def test_a_pause_shows_the_average_and_the_plans_own_student(tiny_pipeline: Path, tmp_path: Path) -> None:
    """In stage 1 of two it is the combined UNet with the shallow blocks as they are; the rest is the teacher's."""
    result = go(tiny_pipeline, tmp_path / "s", steps=8, until=3)
    assert (result.paused_at, result.student_sha256, result.stages) == (3, None, ())
    assert "Paused at step 3" in progress.result_text(result, tmp_path / "s")
    folder = tmp_path / "s" / "paused"
    assert isinstance(students.StudentUNet.from_pretrained(folder), students.StudentUNet)
    student, teacher = load_file(folder / WEIGHTS), load_file(tiny_pipeline / "unet" / WEIGHTS)
    assert torch.equal(student["mid_block.resnets.0.conv1.weight"], teacher["mid_block.resnets.0.conv1.weight"])
    assert not torch.equal(
        student["down_blocks.0.resnets.0.conv1.weight"], teacher["down_blocks.0.resnets.0.conv1.weight"]
    )
    assert load_unet(load_family(str(folder)), str(folder)).config["edits"]

    go(tiny_pipeline, tmp_path / "a", recipe=recipes.bk_sdm, steps=8, until=3, ema=0.9)
    averaged = load_file(tmp_path / "a" / "paused" / WEIGHTS)
    (checkpoint,) = (tmp_path / "a" / "checkpoints" / "distilled").glob("step-00000003")
    last = {name.removeprefix("student."): t for name, t in load_file(checkpoint / "weights.safetensors").items()}
    assert averaged.keys() == last.keys()
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)


def test_a_pause_that_cannot_be_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    for until, message in ((0, "--until must be between 1 and 8, got 0"), (9, "got 9")):
        with pytest.raises(ValueError, match=message):
            go(tiny_pipeline, tmp_path / "s", steps=8, until=until)
    with pytest.raises(ValueError, match="cannot be combined with --stage compressed"):
        go(tiny_pipeline, tmp_path / "s", steps=8, until=2, only="compressed")

    def three_stages(*arguments: object) -> tuple[Stage, ...]:
        first, second = recipes.progressive_incubation(*arguments)  # type: ignore[arg-type]
        return (Stage("warm", first.plan, 2, first.weights), first, second)

    with pytest.raises(ValueError, match=r"--until 1 falls into the stage warm.*pause in combined, from step 7 on"):
        go(tiny_pipeline, tmp_path / "s", recipe=three_stages, steps=8, until=1)
    assert not (tmp_path / "s").exists()
    go(tiny_pipeline, tmp_path / "s", recipe=recipes.bk_sdm, steps=8, until=4)
    with pytest.raises(ValueError, match="has reached step 4; it cannot pause at step 2"):
        go(tiny_pipeline, tmp_path / "s", recipe=recipes.bk_sdm, steps=8, until=2)
