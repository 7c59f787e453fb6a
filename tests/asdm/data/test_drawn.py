"""Prompts alone: the teacher draws their pictures once, and they are used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asdm.data import datasets, drawn
from asdm.distill import recipes
from tests.asdm.distill.training import go


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Two steps a picture, in a cache of one's own; how many pictures each call drew."""
    calls: list[int] = []
    draw = drawn._draw
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(drawn, "STEPS", 2)
    monkeypatch.setattr(drawn, "_draw", lambda *args: (calls.append(len(args[3])), draw(*args))[1])
    return calls


def test_a_teacher_draws_its_training_set_once(tiny_pipeline: Path, tmp_path: Path, few_steps: list[int]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\na dog\na red car\n")
    more: dict[str, Any] = {"data": f"prompts:{prompts}", "split": "train", "steps": 1, "batch": 2}
    go(tiny_pipeline, tmp_path / "a", "a_sdm", recipes.bk_sdm, **more)
    assert few_steps == [3]
    go(tiny_pipeline, tmp_path / "b", "a_sdm", recipes.bk_sdm, **more)
    assert few_steps == [3]
    (folder,) = (tmp_path / "cache" / "drawn").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{i:06d}{suffix}" for i in range(3) for suffix in (".png", ".txt")
    ]
    (folder / "000001.txt").unlink()  # as after a stop
    go(tiny_pipeline, tmp_path / "c", "a_sdm", recipes.bk_sdm, **more)
    assert few_steps == [3, 1]
    prompts.write_text("a cat\na dog\n")
    go(tiny_pipeline, tmp_path / "d", "a_sdm", recipes.bk_sdm, **more)
    assert few_steps == [3, 1, 2], "other prompts are another set"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"prompts\.txt does not exist"),
        ("\n \n", r"prompts\.txt has no prompt in it"),
        ("a cat", "need a teacher"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_text(content)
    with pytest.raises(ValueError, match=said):
        datasets.open_source(f"prompts:{tmp_path / 'prompts.txt'}", "train", 64)
