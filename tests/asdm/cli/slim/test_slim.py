"""One command from a checkpoint and a folder to a slim model: its steps, what it refuses, and what stops it."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asdm.cli.slim import estimate, run as running
from asdm.cli.slim.prepare import prepare
from asdm.cli.slim.run import Failed, WorseThanAsked, slim
from asdm.cli.slim.settings import SlimSettings
from asdm.cli.slim.steps import Step, steps_of
from asdm.records.slim import SlimRun
from asdm_prof.sensitivity.variants import MEASURED
from tests.pictures import picture, shard

WEIGHTS = "diffusion_pytorch_model.safetensors"
STEPS = ["profile", "sensitivity", "plan", "distill", "bench", "report"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures with captions."""
    root = tmp_path_factory.mktemp("many")
    for n in range(40):
        (root / f"{n}.png").write_bytes(picture(n))
        (root / f"{n}.txt").write_text(f"number {n}")
    return root


def settings(photos: Path, **changes: Any) -> SlimSettings:
    few: dict[str, Any] = {"prompts": 2, "pictures": 4, "batch": 2, "steps": 4, "replacement": ["gri_attention"]}
    more = {"backend": "fake", "threads": 1, "max_error": 100.0, "recipe": "bk_sdm", "judge": "mini"}
    named: dict[str, Any] = {"budget": "0.9", "data": f"folder:{photos}"}
    return SlimSettings(**named | few | more | changes)


@pytest.fixture
def in_process(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps run in this process; the names of those that were."""
    ran: list[str] = []

    def call(step: Step) -> float:
        more = {"bench": ["--time-budget", "0.2"], "report": ["--format", "html"]}.get(step.name, [])
        ran.append(step.name)
        done = run(*step.words, *more)
        if done.code:
            raise Failed(f"{step.name}: {done.err}", done.code)
        return 1.0

    monkeypatch.setattr(running, "_run", call)
    return ran


def test_it_goes_from_file_to_file_and_on_after_a_stop(
    tiny_pipeline: Path, many: Path, tmp_path: Path, in_process: list[str]
) -> None:
    said: list[str] = []
    prepared = prepare(str(tiny_pipeline), settings(many))
    with pytest.raises(WorseThanAsked, match=r"% of the untrained student's; at most 0% was asked"):
        slim(prepare(str(tiny_pipeline), settings(many, max_error=1e-6)), tmp_path / "out", said.append)
    assert in_process == STEPS[:4]
    with pytest.raises(ValueError, match=r"was begun with budget 0\.9, not 0\.8"):
        slim(prepare(str(tiny_pipeline), settings(many, budget="0.8")), tmp_path / "out", said.append)
    result = slim(prepared, tmp_path / "out", said.append)
    assert in_process == STEPS
    assert [step.name for step in result.steps] == STEPS
    assert SlimRun.load(tmp_path / "out" / "slim.json") == result
    for name in ("profile.json", "damage.json", "plan.json", "bench.json", f"student/{WEIGHTS}", "report/report.html"):
        assert (tmp_path / "out" / name).exists(), name
    bench = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {"clip_score", "latent_mse_to_teacher"} <= set(bench["students"][0]["quality"])
    assert bench["students"][0]["plan_sha256"]
    slim(prepare(str(tiny_pipeline), settings(many, data=f"folder:{many}/.")), tmp_path / "out", said.append)
    assert in_process == STEPS, "nothing is done twice, however the pictures are named"
    assert said[-1].startswith("6 of 6: report is done")
    before = (many / "3.png").read_bytes()
    (many / "3.png").write_bytes(before[:-1] + b"!")
    with pytest.raises(ValueError, match=r"was begun with other data than folder:.* has now"):
        slim(prepare(str(tiny_pipeline), settings(many)), tmp_path / "out", said.append)
    (many / "3.png").write_bytes(before)

    longer = prepare(str(tiny_pipeline), settings(many, steps=6, max_error=1e-6))
    with pytest.raises(WorseThanAsked):
        slim(longer, tmp_path / "out", said.append)
    assert in_process[6:] == ["distill"], "training goes on"
    left = [step.name for step in SlimRun.load(tmp_path / "out" / "slim.json").steps]
    assert left == STEPS[:4], "what follows from it is to be done again"
    log = (tmp_path / "out" / "student" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_two_in_one_folder_and_a_disk_without_locks_are_refused(
    tiny_pipeline: Path, many: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(str(tiny_pipeline), settings(many))
    monkeypatch.setattr(running, "lock", lambda *_, **__: False)
    with pytest.raises(ValueError, match="is being worked on by another process; wait for it"):
        slim(prepared, tmp_path / "out", print)

    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(running, "lock", refuse)
    with pytest.raises(ValueError, match=r"out cannot be locked \(no locks available\); choose an output on another"):
        slim(prepared, tmp_path / "out", print)
    assert in_process == []


def test_pictures_that_are_held_out_are_not_trained_on(many: Path) -> None:
    from asdm.data import datasets
    from asdm.data.settings import Selection

    parts = {
        split: set(datasets.open_source(f"folder:{many}", split, 16, Selection(hold_out=0.25)).captions)
        for split in ("train", "held_out")
    }
    assert not parts["train"] & parts["held_out"]
    assert len(parts["train"] | parts["held_out"]) == 40
    assert 3 <= len(parts["held_out"]) <= 18


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": "1.2"}, "must leave less than the teacher's time and more than nothing, got '1.2'"),
        ({"budget": "x0.5"}, "must leave less than the teacher's time"),
        ({"budget": "0"}, "must leave less"),
        ({"budget": "0ms"}, "must be above 0, got '0ms'"),
        ({"pictures": 3}, "pictures must be at least 4, got 3"),
        ({"budget": "fast"}, r"must be like 0\.8, 80%, x1\.3, 250ms or 1\.2s, got 'fast'"),
        ({"data": "folder:nowhere"}, "nowhere is not a folder"),
        ({"data": None}, "asdm slim of .* needs pictures like those that it draws; name them"),
        ({"hold_out": 0.9}, "pictures to train on; a student needs at least 16"),
        ({"recipe": "slowly"}, "unknown recipe 'slowly'"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"size": 60}, "size 60 does not fit"),
        ({"vgg": "nowhere", "recipe": "progressive_incubation"}, "unknown VGG 'nowhere'"),
    ],
)
def test_nonsense_is_refused_before_it_takes_an_hour(
    tiny_pipeline: Path, many: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        prepare(str(tiny_pipeline), settings(many, **changes))


@pytest.mark.parametrize("named", [None, ["narrow_resnet", "gri_attention"]])
def test_what_is_measured_is_timed_too(many: Path, named: list[str] | None) -> None:
    """The planner takes what has both a time and a damage."""
    steps = {
        step.name: step.words for step in steps_of("mine", settings(many, replacement=named), "x", 40, Path("out"))
    }
    timed = steps["profile"][steps["profile"].index("--options") + 1].split(",")
    words = steps["sensitivity"]
    measured = [words[i + 1] for i, word in enumerate(words) if word == "--replacement"]
    assert timed == measured == (named or list(MEASURED))


def test_prompts_of_which_none_would_be_held_out_are_refused_at_once(tiny_pipeline: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"number {n}" for n in range(20)))
    with pytest.raises(ValueError, match=r"prompts\.txt has no picture to hold out; raise --hold-out\."):
        prepare(str(tiny_pipeline), settings(tmp_path, data=f"prompts:{prompts}", hold_out=0.02))
    prepare(str(tiny_pipeline), settings(tmp_path, data=f"prompts:{prompts}", hold_out=0.1))


def test_pictures_of_shards_are_counted_before_the_first_step(tiny_pipeline: Path, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(40), broken=tuple(range(20)))
    named = settings(tmp_path, data=f"webdataset:{tmp_path}", hold_out=0.1, pictures=30)
    assert 16 <= (prepare(str(tiny_pipeline), named).pictures or 0) < 20
    shard(tmp_path / "a.tar", range(12))
    with pytest.raises(ValueError, match="pictures to train on; a student needs at least 16"):
        prepare(str(tiny_pipeline), named)


def test_another_folder_is_left_alone(tiny_pipeline: Path, many: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not the folder of a slim run"):
        slim(prepare(str(tiny_pipeline), settings(many)), tmp_path, print)


def test_where_no_vgg_suits_the_pictures_training_goes_without_and_says_so(tiny_pipeline: Path, many: Path) -> None:
    said: list[str] = []
    prepared = prepare(str(tiny_pipeline), settings(many, recipe="progressive_incubation"), said.append)
    assert prepared.left_out == ("--weight", "perceptual=0")
    assert any("goes without the perceptual term" in line for line in said)


def test_any_term_of_any_recipe_is_left_out_for_want_of_its_network(
    tiny_pipeline: Path, many: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from asdm.distill import Stage\n\n\ndef recipe(topology, plan, steps):\n"
        "    return (Stage('only', plan, steps, {'output': 1.0, 'perceptual_prediction': 0.1}),)\n"
    )
    said: list[str] = []
    prepared = prepare(str(tiny_pipeline), settings(many, recipe=f"{tmp_path / 'mine.py'}:recipe"), said.append)
    assert prepared.left_out == ("--weight", "perceptual_prediction=0")
    assert any("goes without the perceptual_prediction term" in line for line in said)


def test_a_dry_run_prints_time_memory_disk_and_cards(run: Any, tiny_pipeline: Path, many: Path, tmp_path: Path) -> None:
    line = ("asdm", "slim", tiny_pipeline, "--budget", "0.8", "--data", f"folder:{many}", "-o", "out")
    done = run(*line, "--recipe", "bk_sdm", "--dry-run")
    assert done.code == 0, done.err
    for name in STEPS:
        assert f"\n{name}" in done.out
    assert "8 GiB suffice for training in fp16 as it is" in done.out
    assert "asdm-prof plan --profile out/profile.json --damage out/damage.json" in done.out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_stable_diffusion_trains_in_twelve_gigabytes(many: Path) -> None:
    prepared = prepare("sd15", settings(many, weights="random", batch=4, recipe="progressive_incubation"))
    eight, twelve, more = estimate.fits(prepared, "a_sdm")
    assert twelve.options is not None
    assert more.options is not None
    assert eight.gib == 8


@pytest.mark.slow
@pytest.mark.serial
def test_five_kills_at_random_moments_end_with_the_same_bits(tiny_pipeline: Path, many: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "asdm", "slim", str(tiny_pipeline), "--budget", "0.9", "--data", f"folder:{many}"]
    line += ["--backend", "fake", "--prompts", "2", "--pictures", "4", "--batch", "2", "--steps", "300", "--max-error"]
    line += ["100", "--recipe", "bk_sdm", "--replacement", "gri_attention", "--threads", "1", "--judge", "mini"]

    def start(folder: str) -> Any:
        with (tmp_path / f"{folder}.txt").open("a") as log:
            return subprocess.Popen([*line, "-o", str(tmp_path / folder)], stdout=log, stderr=log)

    began = time.monotonic()
    assert start("whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    took = time.monotonic() - began
    chance, kills = random.Random(0), 0
    while kills < 5:
        process = start("killed")
        try:
            process.wait(chance.uniform(0.08, 0.3) * took)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.2)  # its step ends with it
            continue
        break
    assert start("killed").wait() == 0, (tmp_path / "killed.txt").read_text()
    assert kills == 5
    for name in ("plan.json", f"student/{WEIGHTS}", "student/log.jsonl"):
        one, other = ((tmp_path / folder / name).read_text("latin1") for folder in ("whole", "killed"))
        if name.endswith(".jsonl"):
            one, other = (_without_times(text) for text in (one, other))
        if name == "plan.json":
            one, other = (json.loads(text)["edits"] for text in (one, other))
        assert one == other, name


@pytest.mark.slow
@pytest.mark.serial
def test_ten_steps_do_not_pass_and_eight_hundred_halve_the_untrained_students_error(tmp_path: Path) -> None:
    """The bundled model from its single file, on its drawings as a folder of pictures; eight minutes."""
    from torchvision.utils import save_image

    from asdm.data.datasets import emoji

    photos = tmp_path / "photos"
    photos.mkdir()
    for i, (image, caption, _) in enumerate(emoji.open_data("train")):
        save_image((image + 1) / 2, photos / f"{i:04d}.png")
        (photos / f"{i:04d}.txt").write_text(caption)

    def asdm(*words: str) -> int:
        command = [sys.executable, "-m", "asdm", *words]
        with (tmp_path / "log.txt").open("a") as log:
            return subprocess.run(command, cwd=tmp_path, stdout=log, stderr=log).returncode

    assert asdm("export", "mini", "--to", "single_file", "-o", "mini.safetensors") == 0
    line = ["slim", "mini.safetensors", "--budget", "0.8", "--data", "folder:photos", "--recipe", "bk_sdm", "-o", "out"]
    line += ["--prompts", "16", "--pictures", "4", "--judge", "mini", "--threads", "1", "--steps"]
    assert asdm(*line, "10") == 1, (tmp_path / "log.txt").read_text()
    assert "at most 50% was asked" in (tmp_path / "log.txt").read_text()
    assert asdm(*line, "800") == 0, (tmp_path / "log.txt").read_text()
    held_out = json.loads((tmp_path / "out" / "student" / "distill.json").read_text())["held_out"]
    assert held_out["pictures"] == 64
    assert held_out["error"] <= held_out["untrained"] / 2
    assert (tmp_path / "out" / "report" / "report.html").exists()


def _without_times(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in ("step_s", "images_per_s")} for line in lines]
