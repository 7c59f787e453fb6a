"""The training loop: an interrupted run resumes with the same bits; everything follows from seed and step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.mini.parts import augment
from benchmarks.mini.training import CHECKPOINTS, LOG, Trainer, TrainingTask, train


def say_nothing(*_) -> None:
    pass


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def a_task(
    steps: int = 24,
    batch: int = 16,
    break_at: int | None = None,
    workers: int = 1,
    spread: float = 0.1,
    muon: bool = False,
) -> TrainingTask:
    """A small network that learns a line from noisy points; `break_at` makes its loss no number."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    taken = 0

    def loss(indices: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        nonlocal taken
        taken += 1
        noise = spread * torch.randn(len(indices), generator=generator)
        error = (net(points[indices])[:, 0] - points[indices].sum(1) - noise).square().mean()
        return {"loss": error * float("nan") if taken == break_at else error, "error": error}

    return TrainingTask(
        "line", net, len(points), loss, 16 * steps, batch, learning_rate=1e-2, warm_up=80, workers=workers,
        by_muon=(lambda name, _: name == "2.weight") if muon else None,
    )  # fmt: skip


def bits(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("how", [{}, {"workers": 3}, pytest.param({"muon": True}, marks=needs_muon)])
def test_a_run_in_three_sittings_equals_one_in_one(tmp_path: Path, how: dict[str, Any]):
    whole = bits(train(a_task(**how), tmp_path / "whole", say_nothing))
    for stop_at in (5 * 16, 17 * 16, None):
        last = train(a_task(**how), tmp_path / "parts", say_nothing, stop_at=stop_at)
    assert all(torch.equal(a, b) for a, b in zip(whole, bits(last), strict=True))
    logs = [(tmp_path / name / LOG).read_text().splitlines() for name in ("whole", "parts")]
    terms = [[{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in log] for log in logs]
    assert terms[0] == terms[1]
    assert [line["step"] for line in terms[0]] == [0, 10, 20]


def test_workers_sum_to_the_gradient_of_the_whole_batch(tmp_path: Path):
    one, three = (Trainer(a_task(workers=n, spread=0.0), tmp_path / str(n)) for n in (1, 3))
    assert one.advance() == pytest.approx(three.advance(), rel=1e-5)
    assert all(
        torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
        for a, b in zip(one.parameters.values(), three.parameters.values(), strict=True)
    )


@needs_muon
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_trains_kernels_as_rows_and_adamw_the_rest(tmp_path: Path, memory_format: torch.memory_format):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 1)).to(memory_format=memory_format)
    x = torch.randn(4, 3, 3, 3)

    def loss(indices: torch.Tensor, _: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": net(x[indices]).square().mean()}

    task = TrainingTask(
        "kernels", net, 4, loss, 8, batch=4, learning_rate=0.1, warm_up=4, by_muon=lambda name, _: name == "0.weight"
    )
    kernel, others = net[0].weight.detach().clone(), bits(net)[1:]
    trainer = Trainer(task, tmp_path)
    trainer.advance()
    alone = nn.Parameter(kernel.flatten(1))
    alone.grad = net[0].weight.grad.flatten(1)
    torch.optim.Muon([alone], 0.1, 0.01, adjust_lr_fn="match_rms_adamw").step()
    torch.testing.assert_close(net[0].weight.detach(), alone.detach().view_as(kernel), rtol=0.02, atol=1e-3)
    assert not any(torch.equal(new, old) for new, old in zip(bits(net)[1:], others, strict=True))


def test_steps_after_the_last_checkpoint_are_taken_again(tmp_path: Path):
    whole = bits(train(a_task(), tmp_path / "whole", say_nothing))
    train(a_task(), tmp_path / "killed", say_nothing, stop_at=9 * 16)
    checkpoints = tmp_path / "killed" / CHECKPOINTS
    shutil.copytree(checkpoints, tmp_path / "kept")
    train(a_task(), tmp_path / "killed", say_nothing, stop_at=21 * 16)
    shutil.rmtree(checkpoints)
    shutil.copytree(tmp_path / "kept", checkpoints)  # as if it had died before the next checkpoint
    with (tmp_path / "killed" / LOG).open("a") as log:
        log.write('{"step": 2')
    again = bits(train(a_task(), tmp_path / "killed", say_nothing))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / LOG).read_text().splitlines()]
    assert steps == [0, 10, 20]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path):
    train(a_task(), tmp_path, say_nothing, stop_at=8 * 16)
    before = contents(tmp_path / CHECKPOINTS)
    assert before
    with pytest.raises(ValueError, match="loss of line is not a number after 176 pictures"):
        train(a_task(break_at=4), tmp_path, say_nothing)
    assert contents(tmp_path / CHECKPOINTS) == before


def test_the_loss_falls(tmp_path: Path):
    train(a_task(steps=200), tmp_path, say_nothing)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] / 5


def test_another_batch_size_goes_on_where_the_run_stopped(tmp_path: Path):
    train(a_task(), tmp_path, say_nothing, stop_at=160)
    train(a_task(batch=32), tmp_path, say_nothing)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(line["step"], line["pictures"]) for line in lines] == [(0, 16), (10, 192)]
    assert lines[-1]["rate"] == a_task().rate(160)


def test_the_last_pictures_have_a_loss_of_their_own_which_the_time_left_counts(tmp_path: Path):
    first = a_task()

    def last_loss(indices: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {name: 0 * term for name, term in first.loss(indices, generator).items()}

    task = replace(first, last_loss=last_loss, last_pictures=64, last_cost=3.0)
    assert (task.cost(0), task.cost(320), task.cost(384)) == (0, 320, 320 + 3 * 64)
    train(task, tmp_path, say_nothing)
    losses = {line["step"]: line["loss"] for line in map(json.loads, (tmp_path / LOG).read_text().splitlines())}
    assert losses[10] > 0 == losses[20]


def test_the_rate_rises_stays_and_falls_to_nothing():
    task = a_task(steps=100)
    assert task.rate(0) == pytest.approx(1e-2 / 5)
    assert task.rate(64) == task.rate(800) == pytest.approx(1e-2)
    assert task.rate(1200) == pytest.approx(1e-2 / 2)
    assert task.rate(1584) == pytest.approx(1e-2 / 50)


def test_shaken_pictures_are_moved_or_mirrored_on_white():
    image = torch.full((1, 3, 8, 8), 1.0)
    image[0, :, 2, 3] = -1.0
    moved = augment(image.expand(64, -1, -1, -1), torch.Generator().manual_seed(0), pixels=1)
    places = {tuple(int(i) for i in (picture[0] == -1).nonzero()[0]) for picture in moved}
    assert ((moved == -1).sum((1, 2, 3)) == 3).all()
    assert {row for row, _ in places} == {1, 2, 3}
    assert {column for _, column in places} == {2, 3, 4, 5}  # mirrored: 3 → 4


def test_crops_of_large_pictures_come_from_everywhere():
    ramp = torch.arange(64.0).view(1, 1, 8, 8).expand(64, 3, 8, 8)
    crops = augment(ramp, torch.Generator().manual_seed(0), pixels=0, size=4)
    assert crops.shape == (64, 3, 4, 4)
    assert {float(crop.min()) // 8 for crop in crops} == {0, 1, 2, 3, 4}  # the rows where crops begin
