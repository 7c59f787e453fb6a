"""What a trainer must have: accumulation, autocast, checkpointing, schedules, pictures, boards, a live view."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from asdm.cli import progress
from asdm.distill import recipes, trainer
from asdm.distill.context import TrainProgress
from asdm.distill.sampling import RandomInputs
from asdm.distill.stages import resolve_recipe
from asdm.distill.trainer import balance_weights, learning_rate_at
from asdm.models import loading, student as students
from asdm.models.families import load_family
from tests.asdm.distill.training import WEIGHTS, Stop, go, log_of, settings, stop_after


@pytest.fixture(scope="module")
def plain(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of one stage without any option."""
    output = tmp_path_factory.mktemp("plain") / "student"
    go(tiny_pipeline, output, "a_sdm", recipes.bk_sdm, steps=3)
    return output


def test_accumulation_and_gradient_checkpointing_change_rounding_only(
    tiny_pipeline: Path, plain: Path, tmp_path: Path
) -> None:
    go(tiny_pipeline, tmp_path / "s", "a_sdm", recipes.bk_sdm, steps=3, micro_batch=1, gradient_checkpointing=True)
    for mine, yours in zip(log_of(plain), log_of(tmp_path / "s"), strict=True):
        for term in ("loss", "denoising", "output", "features", "gradient_norm"):
            assert yours[term] == pytest.approx(mine[term], rel=1e-3), term


def test_looking_on_changes_no_bit(tiny_pipeline: Path, plain: Path, tmp_path: Path) -> None:
    """Validation pictures with the average in the weights' place, and TensorBoard."""
    pytest.importorskip("tensorboard")
    output = tmp_path / "s"
    go(tiny_pipeline, output, "a_sdm", recipes.bk_sdm, steps=3, validate_every=2, tensorboard=True)
    assert (output / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()
    (picture,) = (output / "validation").iterdir()
    assert picture.name == "step-00000002-distilled.png"
    assert Image.open(picture).size == (2 * 64 + 6, 2 * 64 + 6)  # two captions wide; teacher above student
    assert list((output / "tensorboard").glob("events*"))


def test_bf16_autocast_trains_fp32_weights_whatever_the_teachers_precision(
    tiny_pipeline: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tiny_pipeline, tmp_path / "s", "a_sdm", recipes.bk_sdm, steps=3, dtype="bf16")
    monkeypatch.setattr(trainer, "frozen_dtype", lambda _: torch.bfloat16)  # as on a GPU
    go(tiny_pipeline, tmp_path / "half", "a_sdm", recipes.bk_sdm, steps=3, dtype="bf16")
    assert (tmp_path / "half" / WEIGHTS).read_bytes() == (tmp_path / "s" / WEIGHTS).read_bytes()
    assert {tensor.dtype for tensor in load_file(tmp_path / "s" / WEIGHTS).values()} == {torch.float32}
    for mine, yours in zip(log_of(plain), log_of(tmp_path / "s"), strict=True):
        assert yours["denoising"] == pytest.approx(mine["denoising"], rel=0.05)
        assert yours["denoising"] != mine["denoising"]


def test_stage_2_alone_starts_from_the_teachers_own_blocks(tiny_pipeline: Path, tmp_path: Path) -> None:
    result = go(tiny_pipeline, tmp_path / "s", recipe=recipes.without_incubation, steps=2, learning_rate=0.0, ema=0.0)
    (combined,) = result.stages
    assert combined.steps == 2
    assert combined.audit.trainable.params > 0
    assert not set(combined.audit.trainable.names) & set(combined.audit.shared_with_teacher.names)
    teacher = loading.load_unet(load_family(str(tiny_pipeline)), str(tiny_pipeline))
    plan = students.read_plan("a_sdm_clme", teacher, "tiny")
    pruned, _ = students.build(teacher, plan)
    student = load_file(tmp_path / "s" / WEIGHTS)
    assert student.keys() == pruned.state_dict().keys()
    assert all(torch.equal(student[name], tensor) for name, tensor in pruned.state_dict().items())


def test_blockwise_trains_goes_on_after_a_stop_and_its_losses_fall(tiny_pipeline: Path, tmp_path: Path) -> None:
    recipe = recipes.adjust(recipes.progressive_incubation, "blockwise")
    more: dict[str, Any] = {"recipe": recipe, "steps": 24, "learning_rate": 3e-3, "warm_up": 1, "ema": 0.0}
    with pytest.raises(Stop):
        go(tiny_pipeline, tmp_path / "s", on_progress=stop_after(5, "combined"), **more)
    result = go(tiny_pipeline, tmp_path / "s", **more)
    _, combined = result.stages
    assert combined.mode == "blockwise"
    assert set(combined.first) == {"loss", "denoising", "output", "blocks"}
    assert combined.last["blocks"] < combined.first["blocks"]
    teacher, student = (load_file(path / WEIGHTS) for path in (tiny_pipeline / "unet", tmp_path / "s"))
    assert all(torch.equal(student[name], teacher[name]) for name in combined.audit.frozen.names)


def test_weights_go_to_the_stages_that_know_the_term(tiny_pipeline: Path) -> None:
    def stages(*weights: str, mode: str | None = None) -> Any:
        recipe = recipes.adjust(recipes.progressive_incubation, mode, recipes.parse_weights(weights))
        return resolve_recipe("a_sdm", str(tiny_pipeline), settings(), recipe).stages

    first, second = stages("features=0.5", "combined.output=3")
    assert (first.weights["features"], second.weights["features"]) == (0.5, 0.5)
    assert (first.weights["output"], second.weights["output"]) == (1.0, 3.0)
    first, second = stages("blocks=2", mode="blockwise")
    assert "blocks" not in first.weights
    assert second.weights["blocks"] == 2.0
    with pytest.raises(ValueError, match="no stage has a loss term 'blocks'"):
        stages("blocks=2")
    with pytest.raises(ValueError, match="unknown mode 'half'; choose from end_to_end, blockwise"):
        stages(mode="half")


def test_the_rate_rises_stays_and_falls() -> None:
    def at(step: int, **changes: Any) -> float:
        return learning_rate_at(settings(learning_rate=1.0, warm_up=9, **changes), 109, step)

    assert at(0) == pytest.approx(0.1)
    assert at(8) == pytest.approx(0.9)
    assert at(9) == at(100, schedule="constant") == pytest.approx(1.0)
    assert at(59, schedule="linear") == pytest.approx(at(59)) == pytest.approx(0.5)
    assert at(108) < at(108, schedule="linear") < 0.02
    assert learning_rate_at(settings(learning_rate=1.0, warm_up=None), 10, 0) == 1.0  # a short run has no warm-up


def test_balanced_terms_weigh_what_their_weights_say() -> None:
    factors = balance_weights({"denoising": 1.0, "features": 0.5}, {"denoising": 0.2, "features": 40.0})
    assert factors["denoising"] * 0.2 == pytest.approx(0.2)
    assert factors["features"] * 40.0 == pytest.approx(0.1)


def test_chance_follows_from_seed_stage_step_and_place(tiny_pipeline: Path) -> None:
    context: Any = SimpleNamespace(
        settings=settings(caption_dropout=0.25),
        alphas=torch.ones(1000),
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        recipe=SimpleNamespace(family=load_family(str(tiny_pipeline))),
    )
    one, batch = RandomInputs.draw(context, 0, 3, [1]), RandomInputs.draw(context, 0, 3, [2, 1, 7])
    for name in ("noise", "posterior", "timesteps"):
        assert torch.equal(getattr(one, name)[0], getattr(batch, name)[1]), "whatever is drawn beside it"
    others = [RandomInputs.draw(context, *place) for place in ((1, 3, [1]), (0, 4, [1]), (0, 3, [2]))]
    assert not any(torch.equal(one.noise, other.noise) for other in others)
    many = RandomInputs.draw(context, 0, 0, range(800))
    assert 0.2 < sum(many.drop_caption) / 800 < 0.3
    assert 450 < many.timesteps.double().mean() < 550


def test_the_live_view_shows_shares_pace_and_what_is_left() -> None:
    shares = {"data": 0.05, "encode": 0.15, "compute": 0.78, "rest": 0.02}
    status = TrainProgress("combined", 120, 500, {"denoising": 0.3, "output": 0.1}, 41.2, 190.0, 100, shares)
    stream = io.StringIO()
    Console(file=stream, width=120, force_terminal=True, color_system=None).print(progress.view("Distilling", status))
    shown = stream.getvalue()
    assert "combined, step 120 of 500, 41.2 images/s (compute 78%), 3 min 10 s left, checkpoint at 100" in shown
    assert "75%" in shown
    assert "25%" in shown


def test_lines_come_at_a_stages_ends_and_now_and_then(capsys: Any) -> None:
    watch = progress.lines("Distilling", every_s=1e9)
    for step in range(1, 5):
        watch(TrainProgress("compressed", step, 4, {}, 1.0, 4.0 - step))
    assert [line.split(",")[1].strip() for line in capsys.readouterr().err.splitlines()] == [
        "step 1 of 4",
        "step 4 of 4",
    ]
