"""A finished run goes on with more steps, takes its family from the plan, and keeps pictures out of its training."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asdm.distill import recipes, run_folder
from asdm.utils import locks
from tests.asdm.distill.training import WEIGHTS, Stop, go, log_of, stop_after


def test_a_finished_run_goes_on_and_its_last_stage_gets_the_steps(tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "s"
    first = go(tiny_pipeline, output, steps=4)
    compressed = (output / "stages" / "compressed" / WEIGHTS).read_bytes()
    with pytest.raises(Stop):
        go(tiny_pipeline, output, steps=8, on_progress=stop_after(4, "combined"))
    more = go(tiny_pipeline, output, steps=8)
    assert [(stage.name, stage.steps) for stage in more.stages] == [("compressed", 2), ("combined", 6)]
    assert [line["step"] for line in log_of(output)] == list(range(1, 9))
    assert (output / "stages" / "compressed" / WEIGHTS).read_bytes() == compressed
    assert more.student_sha256 != first.student_sha256
    record = json.loads((output / "run.json").read_text())
    assert record["identity"]["steps"] == 8
    assert record["amended"][0]["was"] == {"steps": 4}
    assert record["amended"][0]["from_step"] == 4
    assert go(tiny_pipeline, output, steps=8).student_sha256 == more.student_sha256, "and is then left alone"
    before = (output / "run.json").read_bytes()
    with pytest.raises(ValueError, match="is finished, so nothing would be trained with what --amend changes"):
        go(tiny_pipeline, output, steps=8, learning_rate=0.5, amend=True)
    assert (output / "run.json").read_bytes() == before, "no rate is recorded that was never used"
    with pytest.raises(ValueError, match="with steps 8 instead of 4"):
        go(tiny_pipeline, output, steps=4)


def test_going_on_ends_with_the_same_bits_stopped_or_not(tiny_pipeline: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    go(tiny_pipeline, one, "a_sdm", recipes.bk_sdm, steps=2)
    shutil.copytree(one, other)
    go(tiny_pipeline, one, "a_sdm", recipes.bk_sdm, steps=5)
    with pytest.raises(Stop):
        go(tiny_pipeline, other, "a_sdm", recipes.bk_sdm, steps=5, on_progress=stop_after(4, "distilled"))
    go(tiny_pipeline, other, "a_sdm", recipes.bk_sdm, steps=5)
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def test_without_its_last_checkpoint_a_finished_run_does_not_begin_anew(tiny_pipeline: Path, tmp_path: Path) -> None:
    go(tiny_pipeline, tmp_path / "s", "a_sdm", recipes.bk_sdm, steps=2)
    shutil.rmtree(tmp_path / "s" / "checkpoints")
    with pytest.raises(ValueError, match="the last checkpoint, from which it would continue to more steps, is gone"):
        go(tiny_pipeline, tmp_path / "s", "a_sdm", recipes.bk_sdm, steps=3)


def test_a_plan_brings_its_own_family_and_held_out_pictures_judge_it(
    run: Any, tiny_pipeline: Path, photos: Path, tmp_path: Path
) -> None:
    assert run("asdm-prof", "profile", tiny_pipeline, "--backend", "fake", "-o", "profile.json").code == 0
    assert run("asdm-prof", "plan", "--profile", "profile.json", "--budget", "0.9", "-o", "plan.json").code == 0
    line = ("asdm", "distill", "plan.json", "--recipe", "bk_sdm", "--steps", 2, "--batch", 2, "-o", "student")
    refused = run(*line)
    assert refused.code == 2
    assert "needs pictures like those that it draws; name them (--data emoji, folder:DIR" in refused.err
    done = run(*line, "--data", f"folder:{photos}", "--hold-out", "0.3")
    assert done.code == 0, done.err
    assert "held-out pictures its error is" in done.out
    result = json.loads((tmp_path / "student" / "distill.json").read_text())
    assert result["family"] == str(tiny_pipeline)
    assert 0 < result["held_out"]["pictures"] < 12
    assert result["held_out"]["untrained"] > 0


def test_pictures_without_captions_train_unconditionally(
    tiny_pipeline: Path, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    for file in photos.glob("*.png"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "bare")
    go(tiny_pipeline, tmp_path / "s", "a_sdm", recipes.bk_sdm, data=f"folder:{tmp_path / 'bare'}", steps=1)
    assert "has no captions: its 12 pictures are used without (unconditional)" in capsys.readouterr().err


def test_buckets_and_mirrored_pictures_train_and_resume_to_the_bit(tiny_pipeline: Path, tmp_path: Path) -> None:
    from tests.pictures import picture

    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(6):
        (photos / f"{n}.png").write_bytes(picture(n, (48, 24) if n % 2 else (24, 48)))
        (photos / f"{n}.txt").write_text(f"number {n}")
    more: dict[str, Any] = {"data": f"folder:{photos}", "split": "train", "flip": True, "buckets": True, "batch": 2}
    go(tiny_pipeline, tmp_path / "a", "a_sdm", recipes.bk_sdm, steps=4, **more)
    with pytest.raises(Stop):
        go(
            tiny_pipeline,
            tmp_path / "b",
            "a_sdm",
            recipes.bk_sdm,
            steps=4,
            on_progress=stop_after(2, "distilled"),
            **more,
        )
    go(tiny_pipeline, tmp_path / "b", "a_sdm", recipes.bk_sdm, steps=4, **more)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_content_decides_what_the_data_are_and_spelling_does_not(
    tiny_pipeline: Path, photos: Path, tmp_path: Path
) -> None:
    """Other bytes under the same name and size are other pictures; `folder:d/` is `folder:d`."""
    data, output = Path(shutil.copytree(photos, tmp_path / "d")), tmp_path / "s"
    more: dict[str, Any] = {"split": "train", "steps": 3, "batch": 2}
    with pytest.raises(Stop):
        go(tiny_pipeline, output, "a_sdm", recipes.bk_sdm, data=f"folder:{data}", on_progress=stop, **more)
    picture = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(picture[:60] + bytes([picture[60] ^ 1]) + picture[61:])
    with pytest.raises(ValueError, match="the pictures have changed since"):
        go(tiny_pipeline, output, "a_sdm", recipes.bk_sdm, data=f"folder:{data}", **more)
    (data / "3.png").write_bytes(picture)
    done = go(tiny_pipeline, output, "a_sdm", recipes.bk_sdm, data=f"folder:{data}/", **more)
    assert [stage.steps for stage in done.stages] == [3]


def stop(status: Any) -> None:
    if status.step == 1:
        raise Stop


def test_a_folder_that_cannot_be_locked_or_is_locked_by_nobody_known_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock", refuse)
    wanted = r"cannot be locked \(no locks available\); choose an output on another disk"
    with pytest.raises(ValueError, match=wanted), run_folder.run_lock(tmp_path / "a"):
        pass
    monkeypatch.setattr(locks, "lock", lambda *_, **__: False)
    wanted = "is being trained by another process; wait for it"
    with pytest.raises(ValueError, match=wanted), run_folder.run_lock(tmp_path / "b"):
        pass
