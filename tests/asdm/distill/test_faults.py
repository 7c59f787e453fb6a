"""What happens to a week of training: kills, a full disk, a loss gone mad, Ctrl-C. Real processes, real signals."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asdm.cli import progress
from asdm.data import loader
from asdm.distill import divergence, recipes
from asdm.distill.divergence import check_losses
from asdm.utils import snapshots
from tests import children
from tests.asdm.distill.training import WEIGHTS, Stop, go, log_of, settings, stop_after

KILLS = int(os.environ.get("KILLS", "4"))  # `make kills` has more
STEPS = max(12, 2 * KILLS)


@pytest.fixture(scope="module")
def command(tiny_pipeline: Path, photos: Path) -> Any:
    """The command that trains into a folder: two stages, a checkpoint at every step."""

    def line(output: Path, *more: Any) -> list[Any]:
        words = ["distill", "a_sdm", "--teacher", tiny_pipeline, "--data", f"folder:{photos}", "--vgg", "mini"]
        words += ["--steps", STEPS, "--batch", 2, "--checkpoint-every", 0, "--threads", 1, "-o", output]
        return [*words, *more]

    return line


@pytest.fixture(scope="module")
def whole(command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("faults")
    assert children.ended(children.start(command(folder / "whole"), folder / "console")) == 0, (
        folder / "console"
    ).read_text()
    return folder / "whole"


def wait_for_step(output: Path, step: int, process: Any) -> None:
    """Until the log has `step` lines, or the process has ended."""
    while process.is_alive() and len(log_of(output)) < step:
        time.sleep(0.005)


def kill(process: Any) -> None:
    process.kill()  # SIGKILL: it cannot be caught
    process.join()


def test_kills_at_random_moments_change_no_bit(command: Any, whole: Path, tmp_path: Path) -> None:
    """Between 0 and 2 steps on, and anywhere in what comes then: loading, a forward, a log line, a checkpoint."""
    output, console = tmp_path / "student", tmp_path / "console"
    chance, codes, reached = random.Random(0), [], set()
    for _ in range(KILLS):
        process = children.start(command(output), console)
        if steps := chance.randrange(3):
            wait_for_step(output, len(log_of(output)) + steps, process)
        time.sleep(chance.uniform(0.0, 0.3))
        kill(process)
        if process.exitcode == 0:  # a fast machine is through before the last
            break
        codes.append(process.exitcode)
        reached.add(len(log_of(output)))
    assert set(codes) == {-signal.SIGKILL}, console.read_text()
    assert len(reached) > KILLS // 4, f"the kills fell on few different steps: {reached}"
    assert children.ended(children.start(command(output), console)) == 0, console.read_text()
    assert (output / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert log_of(output) == log_of(whole)
    assert not list(output.rglob(".*"))


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_whole(
    command: Any, whole: Path, tmp_path: Path
) -> None:
    output, console = tmp_path / "student", tmp_path / "console"
    process = children.start(command(output), console)
    wait_for_step(output, 3, process)
    kill(process)
    before = snapshots.newest(output / "checkpoints" / "compressed")
    assert before is not None
    assert children.ended(children.start(command(output), console, file_bytes=50_000)) == 2
    message = console.read_text()
    assert f"cannot write the checkpoint {output}/checkpoints/compressed/step-" in message
    why = rf": file too large \(it needs \d+ [kM]B\); the checkpoint of step {before.step} is complete\."
    assert re.search(why, message)
    assert "Traceback" not in message
    assert children.ended(children.start(command(output), console)) == 0  # there is room again
    assert (output / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(command: Any, whole: Path, tmp_path: Path, number: int) -> None:
    output, console = tmp_path / "student", tmp_path / "console"
    process = children.start([*command(output), "--checkpoint-every", 9999], console)
    wait_for_step(output, 3, process)
    os.kill(process.pid, number)
    assert children.ended(process) == 130
    assert "repeat the command to resume it" in console.read_text()
    checkpoint = snapshots.newest(output / "checkpoints" / "compressed")
    assert checkpoint is not None
    assert checkpoint.step == len(log_of(output)) >= 3
    assert children.ended(children.start(command(output), console)) == 0
    assert (output / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_nobody_else_trains_in_a_runs_folder(command: Any, tmp_path: Path) -> None:
    output = tmp_path / "student"
    process = children.start(command(output), tmp_path / "console")
    wait_for_step(output, 1, process)
    second = children.start(command(output), tmp_path / "second")
    assert children.ended(second) == 2
    assert f"is being trained by process {process.pid}" in (tmp_path / "second").read_text()
    kill(process)


# ---------------------------------------------------------------------------------------------- nonsense


def test_a_loss_that_is_no_number_stops_the_run_and_an_amended_one_goes_on(tiny_pipeline: Path, tmp_path: Path) -> None:
    """A learning rate that blows up in the middle is taken back, and nothing of it is left."""
    output = tmp_path / "student"
    with pytest.raises(Stop):
        go(tiny_pipeline, output, steps=8, on_progress=stop_after(3, "compressed"))
    message = r"(denoising|the gradient) is (nan|inf) at step 4 \(stage compressed\), .* of step 2 is kept\..*--amend"
    with pytest.raises(ValueError, match=message):
        go(tiny_pipeline, output, steps=8, learning_rate=1e30, amend=True)
    checkpoint = snapshots.newest(output / "checkpoints" / "compressed")
    assert checkpoint is not None
    assert checkpoint.step == 2
    go(tiny_pipeline, output, steps=8, amend=True)
    go(tiny_pipeline, tmp_path / "calm", steps=8)
    assert (output / WEIGHTS).read_bytes() == (tmp_path / "calm" / WEIGHTS).read_bytes()
    assert log_of(output) == log_of(tmp_path / "calm")
    assert len(json.loads((output / "run.json").read_text())["amended"]) == 2


def test_a_leap_stops_the_run_and_names_the_term(tiny_pipeline: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(divergence, "SPIKE_GRACE_STEPS", 1)
    message = r"\w+ jumped to .* \(its running mean is .*; --spike 5\) at step \d+ \(stage compressed\)"
    with pytest.raises(ValueError, match=message):
        go(tiny_pipeline, tmp_path / "student", steps=8, learning_rate=0.5, warm_up=0, spike=5.0)
    check_losses({"output": 5.0}, {"output": 1.0}, 5.0, 60, 0, "s", 0)
    check_losses({"output": 50.0}, {"output": 1.0}, 0.0, 60, 0, "s", 0)
    with pytest.raises(ValueError, match=r"output jumped to 5\.1 .* at step 161 .*there is no earlier checkpoint"):
        check_losses({"output": 5.1}, {"output": 1.0}, 5.0, 60, 100, "s", 0)


# ---------------------------------------------------------------------------------------------- data


def test_data_that_end_the_run_cost_no_step_and_what_was_left_out_is_on_record(
    tiny_pipeline: Path, photos: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "photos").mkdir()
    for file in photos.iterdir():
        (tmp_path / "photos" / file.name).write_bytes(b"no picture" if file.name == "5.png" else file.read_bytes())
    options = {"data": f"folder:{tmp_path}/photos", "split": "train", "steps": 3, "checkpoint_s": 9999.0}
    line = (tiny_pipeline, tmp_path / "student", "a_sdm", recipes.bk_sdm)
    whole = go(tiny_pipeline, tmp_path / "whole", *line[2:], **options)
    names = {"not a picture": (f"{tmp_path}/photos/5.png",)}
    assert [(stage.broken_examples, stage.first_skipped) for stage in whole.stages] == [(1, names)]
    assert f"  1 example left out: not a picture ({tmp_path}/photos/5.png)\n" in progress.result_text(whole, tmp_path)
    batches = loader.batches

    def disk_fails(*arguments: Any) -> Any:
        yield from itertools.islice(batches(*arguments), 2)
        raise ValueError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(loader, "batches", disk_fails)
        with pytest.raises(ValueError, match="the disk is gone"):
            go(*line, **options)
    checkpoint = snapshots.newest(tmp_path / "student" / "checkpoints" / "distilled")
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert "A checkpoint of step 2 is saved; the same command resumes from there." in capsys.readouterr().err
    resumed = go(*line, **options)
    assert (tmp_path / "student" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert log_of(tmp_path / "student") == log_of(tmp_path / "whole")
    assert resumed.stages[0].first_skipped == names


@pytest.mark.parametrize(("own", "others", "said"), [(True, 0.0, "the disk is gone"), (False, 1.0, "another process")])
def test_the_data_of_one_process_end_all_at_the_same_step(own: bool, others: float, said: str) -> None:
    def next_batch() -> str:
        if own:
            raise ValueError("the disk is gone")
        return "a batch"

    accelerator = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda flag, reduction: flag + others)
    with pytest.raises(divergence.UnreadableData, match=said):
        divergence.next_of_all(next_batch, accelerator)
    accelerator.reduce = lambda flag, reduction: flag
    assert own or divergence.next_of_all(next_batch, accelerator) == "a batch"


# ---------------------------------------------------------------------------------------------- checkpoints alone


def test_only_whole_checkpoints_count_and_the_last_few_stay(tmp_path: Path) -> None:
    import torch

    for step in range(1, 6):
        snapshots.write(tmp_path, step, {"weights": {"a": torch.full((3,), float(step))}}, {"x": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    (tmp_path / "step-00000005" / "weights.safetensors").write_bytes(b"")  # a disk that lost power
    (tmp_path / "step-00000006").mkdir()
    checkpoint = snapshots.newest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state["x"]) == (4, 4)
    assert checkpoint.tensors("weights")["a"].tolist() == [4.0] * 3
    (tmp_path / ".step-00000007.abcdefgh").mkdir()
    snapshots.prepare(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_everything_of_a_run_is_json_that_reads_back(tiny_pipeline: Path, tmp_path: Path) -> None:
    go(tiny_pipeline, tmp_path / "student", steps=2)
    for path in (tmp_path / "student").glob("*.json"):
        json.loads(path.read_text())
    assert settings().batch == 4
