"""`asdm generate` and `asdm bench --quality` as their users type them, on the mini that ships."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import files_in


def test_a_prompt_becomes_a_png_that_depends_on_its_seed_alone(run: Any, tmp_path: Path) -> None:
    def draw(name: str, *more: str) -> np.ndarray:
        done = run("asdm", "generate", "a red heart, twemoji style", "-o", name, "--steps", "4", *more)
        assert done.code == 0, done.err
        assert done.out == ""
        return np.asarray(Image.open(tmp_path / name))

    first, again, other = draw("a.png"), draw("b.png"), draw("c.png", "--seed", "1")
    assert first.shape == (64, 64, 3)
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "heart.jpg"], "the output must be a .png file, got heart.jpg."),
        (["-o", "there.png"], "there.png exists; name another output or add --force."),
        (["-o", "x.png", "--steps", "0"], "steps must be at least 1, got 0."),
        (["-o", "x.png", "--size", "60"], "size 60 does not fit mini: choose a multiple of 32 pixels, such as 64."),
        (["-o", "x.png", "--family", "sd16"], "unknown family 'sd16'; choose from"),
        (["-o", "x.png", "--student", "nowhere/"], "nowhere/ does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(run: Any, tmp_path: Path, more: list[str], said: str) -> None:
    (tmp_path / "there.png").write_text("mine")
    done = run("asdm", "generate", "a red heart", *more)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert files_in(tmp_path) == ["there.png"]
    assert (tmp_path / "there.png").read_text() == "mine"


def test_a_student_draws_and_is_judged_beside_its_teacher(run: Any, tmp_path: Path) -> None:
    assert run("asdm", "build", "bk_sdm_small", "--teacher", "mini", "-o", "student").code == 0
    assert json.loads((tmp_path / "student" / "build.json").read_text())["weights"] == "shipped"  # not where they lie
    drawn = run("asdm", "generate", "a red heart", "--student", "student", "-o", "heart.png", "--steps", "2")
    assert drawn.code == 0, drawn.err

    settings = [
        "--steps",
        "2",
        "--time-budget",
        "1",
        "--quality",
        "--pictures",
        "12",
        "--keep",
        "2",
        "-o",
        "bench.json",
    ]
    done = run("asdm", "bench", "--teacher", "mini", "--student", "student", *settings, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["students"][0]["quality"]
    assert found == json.loads((tmp_path / "bench.json").read_text())["students"][0]["quality"]
    assert set(found) >= {"frechet_distance", "clip_score", "recall_at_1", "latent_mse_to_teacher"}
    assert found["latent_mse_to_teacher"]["value"] > 0
    for metric in found.values():
        assert set(metric) == {"value", "low", "high", "teacher", "noise_floor"}
    drawings = json.loads((tmp_path / "bench.json").read_text())["drawings"]
    assert [drawing["seed"] for drawing in drawings] == [0, 1]
    for drawing in drawings:
        pictures = [drawing["real"], drawing["teacher"], *drawing["students"]]
        assert len({*pictures}) == 3, "the teacher's, the student's and the real picture are not the same"
        assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--keep", "1"], "--keep 1 needs --quality"),
        (["--quality", "--keep", "17"], "keep must be between 0 and 16, got 17."),
        (["--quality", "--keep", "-1"], "keep must be between 0 and 16, got -1."),
    ],
)
def test_more_pictures_than_a_report_holds_are_not_kept(run: Any, more: list[str], said: str) -> None:
    done = run("asdm", "bench", "--teacher", "mini", "--student", "a_sdm", *more)
    assert done.code == 2
    assert said in done.err


def test_too_many_pictures_are_refused_before_anything_is_timed(run: Any) -> None:
    done = run("asdm", "bench", "--teacher", "mini", "--student", "a_sdm", "--quality", "--pictures", "5000")
    assert done.code == 2
    assert "pictures must be between 2 and the number of examples, got 5000: emoji has 638 in its split" in done.err
