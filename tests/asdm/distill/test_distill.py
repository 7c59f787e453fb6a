"""The trainer on a tiny real Stable Diffusion: what learns, what stays, what is logged; that stops change nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from asdm.cli.progress import result_text
from asdm.distill import divergence, recipes, trainer
from asdm.distill.dry_run import preview
from asdm.distill.run_folder import check_folder, claim_folder
from asdm.distill.settings import DistillSettings
from asdm.distill.setup import make_optimizer
from asdm.models import loading, student as students
from asdm.models.families import load_family
from asdm.records.distill import DistillRun
from asdm.unet.blocks import topology
from tests.asdm.distill.training import WEIGHTS, Stop, go, log_of, settings, stop_after
from tests.pictures import shard

SHALLOW = ("down_blocks.0.", "up_blocks.1.")


@pytest.fixture(scope="module")
def whole(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of both stages."""
    output = tmp_path_factory.mktemp("whole") / "student"
    go(tiny_pipeline, output)
    return output


# ---------------------------------------------------------------------------------------------- what it does


def test_both_stages_run_and_their_students_load(tiny_pipeline: Path, whole: Path) -> None:
    student = students.StudentUNet.from_pretrained(whole)
    assert student.config["edits"]
    first = UNet2DConditionModel.from_pretrained(whole / "stages" / "compressed")  # removal alone: plain diffusers
    assert [len(block.resnets) for block in first.down_blocks] == [1, 1]
    lines = log_of(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["stage"] for line in lines] == ["compressed"] * 2 + ["combined"] * 2
    assert set(lines[0]) >= {"loss", "denoising", "output", "features", "learning_rate", "gradient_norm"}
    assert set(lines[2]) >= {"loss", "denoising", "output", "mid_block", "perceptual"}
    assert json.loads((whole / "distill.json").read_text())["schema"] == "asdm.distill/1"
    assert not (whole / "checkpoints" / "compressed").exists()
    assert len(list((whole / "checkpoints" / "combined").iterdir())) == 1  # from which it goes on, with more steps


def test_what_is_frozen_keeps_every_bit_and_what_learns_moves(tiny_pipeline: Path, whole: Path) -> None:
    teacher = load_file(tiny_pipeline / "unet" / WEIGHTS)
    student, first = load_file(whole / WEIGHTS), load_file(whole / "stages" / "compressed" / WEIGHTS)
    audit = json.loads((whole / "build.json").read_text())["audit"]
    assert {name for name in student if name.startswith(SHALLOW)} == set(audit["trainable"]["names"])
    assert set(audit["frozen"]["names"]) == set(audit["shared_with_teacher"]["names"])
    for name in audit["frozen"]["names"]:
        assert torch.equal(student[name], teacher[name]), name
    moved = [
        name for name in audit["trainable"]["names"] if name in first and not torch.equal(student[name], first[name])
    ]
    assert len(moved) > 0.9 * len([name for name in audit["trainable"]["names"] if name in first])
    assert all(not torch.equal(tensor, teacher[name]) for name, tensor in first.items() if name.endswith("conv1.weight")
               and name in teacher and tensor.shape == teacher[name].shape and "mid_block" in name)  # fmt: skip


def test_the_audit_says_what_the_optimizer_really_holds(tiny_pipeline: Path, tmp_path: Path, monkeypatch: Any) -> None:
    held = []
    real = make_optimizer

    def spy(parameters: Any, chosen: DistillSettings) -> Any:
        optimizer = real(parameters, chosen)
        held.append(sum(p.numel() for group in optimizer.param_groups for p in group["params"]))
        return optimizer

    monkeypatch.setattr(trainer, "make_optimizer", spy)
    result = go(tiny_pipeline, tmp_path / "student", steps=2)
    previews = preview("a_sdm_clme", str(tiny_pipeline), settings(steps=2), recipes.progressive_incubation)
    assert held == [stage.audit.trainable.params for stage in result.stages]
    assert held == [stage.audit.trainable.params for stage in previews]
    assert [s.audit.shared_with_teacher.params for s in previews] == [
        s.audit.shared_with_teacher.params for s in result.stages
    ]
    assert previews[0].audit.shared_with_teacher.params == 0


def test_losses_fall(tiny_pipeline: Path, tmp_path: Path) -> None:
    """The student has 4 pictures to learn, so that 30 steps are enough to see."""
    result = go(tiny_pipeline, tmp_path / "student", "bk_sdm_small", recipes.bk_sdm, steps=30, learning_rate=3e-3,
                warm_up=2, caption_dropout=0.0, checkpoint_s=1e9)  # fmt: skip
    (stage,) = result.stages
    assert stage.last["output"] < 0.7 * stage.first["output"]
    assert stage.last["features"] < 0.7 * stage.first["features"]
    lines = log_of(tmp_path / "student")
    assert lines[0]["loss"] == pytest.approx(
        sum(lines[0][name] for name in ("denoising", "output", "features")), rel=1e-5
    )


def test_how_far_gates_open_is_logged_and_recorded(whole: Path) -> None:
    """CLME's (§2.3): closed at the start, so a few steps open each of them a little."""
    *_, last = (line for line in log_of(whole) if line["stage"] == "combined")
    assert {name.rsplit(".", 1)[1] for name in last["gates"]} == {"conv1", "conv2"}
    assert all(0 < gate < 0.5 for gates in last["gates"].values() for gate in gates)
    stages = json.loads((whole / "distill.json").read_text())["stages"]
    assert [stage.get("gates", {}) for stage in stages] == [{}, last["gates"]]


# ---------------------------------------------------------------------------------------------- stops


@pytest.mark.parametrize("at", [(2, "compressed"), (2, "combined")])
def test_a_run_that_stopped_goes_on_bit_by_bit(tiny_pipeline: Path, whole: Path, tmp_path: Path, at: Any) -> None:
    output = tmp_path / "student"
    with pytest.raises(Stop):
        go(tiny_pipeline, output, on_progress=stop_after(*at))
    go(tiny_pipeline, output)
    assert (output / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert log_of(output) == log_of(whole)


def test_a_finished_run_is_left_alone(tiny_pipeline: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert go(tiny_pipeline, whole).student_sha256 == json.loads((whole / "distill.json").read_text())["student_sha256"]
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert after == before


def test_stages_run_one_by_one_as_well(tiny_pipeline: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    with pytest.raises(ValueError, match="run --stage compressed first"):
        go(tiny_pipeline, output, only="combined")
    assert go(tiny_pipeline, output, only="compressed").student_sha256 is None
    assert not (output / WEIGHTS).exists()
    go(tiny_pipeline, output, only="combined")
    assert (output / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_first_stage_that_another_run_has_is_not_trained_again(
    tiny_pipeline: Path, whole: Path, tmp_path: Path
) -> None:
    other = recipes.adjust(recipes.progressive_incubation, weights={"perceptual": 0.0})
    alone, taken = tmp_path / "alone", tmp_path / "taken"
    go(tiny_pipeline, alone, "a_sdm", recipe=other)
    trained = []
    result = go(tiny_pipeline, taken, "a_sdm", recipe=other, first_stage_from=whole,
                on_progress=lambda status: trained.append(status.stage))  # fmt: skip
    assert "compressed" not in trained
    assert (taken / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes() != (whole / WEIGHTS).read_bytes()
    assert log_of(taken) == log_of(alone)
    assert [stage.steps for stage in result.stages] == [2, 2]
    assert go(tiny_pipeline, taken, "a_sdm", recipe=other, first_stage_from=whole) == result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "it has seed 0 instead of 1"),
        ({"steps": 6}, "it has no such stage that is finished after 3 steps"),
        ({"learning_rate": 1e-4}, r"it has learning_rate 0\.001 instead of 0\.0001"),
        ({"weights": {"features": 2.0}}, r"it has weights \{.*1\.0\} instead of \{.*2\.0\}"),
        ({"plan": "bk_sdm_small"}, "its student there has another plan"),
    ],
)
def test_a_first_stage_of_an_unlike_run_is_refused(
    tiny_pipeline: Path, whole: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = recipes.adjust(recipes.progressive_incubation, weights=changes.pop("weights", None))
    with pytest.raises(ValueError, match=rf"the stage compressed cannot be taken from {whole}: {message}\.$"):
        go(tiny_pipeline, tmp_path / "new", changes.pop("plan", "a_sdm"), recipe, first_stage_from=whole, **changes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "holds another run, with seed 0 instead of 1; choose another output, or add --force"),
        ({"steps": 2}, "with steps 4 instead of 2"),
        ({"data_fingerprint": "ab"}, "the data set is not the one with which .* was started: its files, sizes or"),
        ({"data_sample": "ab"}, "the pictures have changed since .* was started"),
        ({"plan_sha256": "ab"}, "with plan_sha256"),
        ({"teacher_sha256": "abc"}, "the teacher has changed since .* was started"),
        ({"learning_rate": 1e-5}, r"was trained with learning_rate 0\.001 so far, got 1e-05; .* --amend"),
        ({"balance": True}, "was trained with balance false so far, got true"),
    ],
)
def test_another_runs_folder_is_refused(whole: Path, changes: dict[str, Any], message: str) -> None:
    before, existing = (whole / "run.json").read_bytes(), DistillRun.load(whole / "run.json")
    parts = {
        part: {key: changes.get(key, value) for key, value in getattr(existing, part).items()}
        for part in ("identity", "tuning")
    }
    assert parts != {"identity": existing.identity, "tuning": existing.tuning}
    with pytest.raises(ValueError, match=message):
        claim_folder(whole, existing.model_copy(update=parts))
    assert (whole / "run.json").read_bytes() == before


def test_a_folder_without_a_run_is_refused_and_kept(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(ValueError, match="is not the folder of a run; choose another output"):
            go(tiny_pipeline, tmp_path / "mine", force=force)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_force_throws_a_run_away_and_begins_anew(tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    with pytest.raises(Stop):
        go(tiny_pipeline, output, on_progress=stop_after(2, "compressed"), seed=5)
    go(tiny_pipeline, output, "a_sdm", recipes.bk_sdm, steps=1, force=True)
    assert [line["step"] for line in log_of(output)] == [1]
    assert not (output / "checkpoints" / "compressed").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("teacher/unet/config.json", "is or holds the input .*/student/teacher; choose another output"),
        ("notes.txt", r"is not replaced: it holds .*/student/notes\.txt, which this command did not write"),
        ("stages/compressed/mine.safetensors", r"it holds .*mine\.safetensors, which"),
        ("config.json/photo.png", r"it holds .*photo\.png, which"),
        ("pictures", "it holds .*/student/pictures, which"),
    ],
)
def test_force_deletes_nothing_but_what_a_run_wrote(
    tiny_pipeline: Path, whole: Path, tmp_path: Path, name: str, words: str
) -> None:
    output, teacher = tmp_path / "student", tiny_pipeline
    shutil.copytree(whole, output, ignore=lambda *_: ["config.json"] if name.startswith("config") else [])
    check_folder(output, True)
    if name.startswith("teacher"):
        teacher = output / "teacher"
        shutil.copytree(tiny_pipeline, teacher)
    elif "." in name:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    else:
        (output / name).mkdir()
    before = sorted(output.rglob("*"))
    with pytest.raises(ValueError, match=words):
        go(teacher, output, force=True)
    assert sorted(output.rglob("*")) == before


def test_all_that_a_run_writes_may_be_deleted(tmp_path: Path) -> None:
    """Also what only some runs have: pauses, TensorBoard, pictures on the way, leftovers of a killed process."""
    names = ("run.json", "paused/paused.json", "tensorboard/events.out.tfevents.1.host.2.0", "adapter.safetensors",
             "validation/step-00000001-combined.png", "checkpoints/combined/step-00000002/state.json",
             "checkpoints/combined/.step-00000003.abcdefgh/half", "stages/.combined.abcdefgh/x",
             ".config.json.publish0", "diffusion_pytorch_model-00001-of-00002.safetensors")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    check_folder(tmp_path, True)


def test_tuning_may_be_amended_and_the_folder_says_so(tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    with pytest.raises(Stop):
        go(tiny_pipeline, output, on_progress=stop_after(2, "compressed"))
    go(tiny_pipeline, output, learning_rate=1e-5, amend=True)
    run_record = json.loads((output / "run.json").read_text())
    assert run_record["tuning"]["learning_rate"] == 1e-5
    (note,) = run_record["amended"]
    assert (note["from_step"], note["was"]) == (1, {"learning_rate": 1e-3})
    rates = [line["learning_rate"] for line in log_of(output)]
    assert rates[0] > 1e-4 > rates[1]


@pytest.mark.parametrize("balance", [False, True])
def test_a_loss_term_may_be_added_and_one_taken_out(
    tiny_pipeline: Path, tmp_path: Path, balance: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new term has no running mean that a spike could be told by, and one that is gone has no last value."""
    monkeypatch.setattr(divergence, "SPIKE_GRACE_STEPS", 0)
    output, bk = tmp_path / "student", recipes.bk_sdm
    with pytest.raises(Stop):
        go(tiny_pipeline, output, "bk_sdm_base", bk, balance=balance, on_progress=stop_after(2, "distilled"))
    other = recipes.adjust(bk, weights={"features": 0.0, "self_attention": 1.0})
    result = go(tiny_pipeline, output, "bk_sdm_base", other, balance=balance, amend=True)
    (stage,) = result.stages
    assert "features" in stage.first.keys() - stage.last.keys()
    assert "self_attention" in stage.last.keys() - stage.first.keys()
    said = result_text(result, output)
    assert re.search(r"features +[\d.e-]+ → —", said)
    assert re.search(r"self_attention +— → [\d.e-]+", said)


def test_a_changed_teacher_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_pipeline, teacher)
    with pytest.raises(Stop):
        go(teacher, tmp_path / "student", on_progress=stop_after(1, "compressed"))
    unet = UNet2DConditionModel.from_pretrained(teacher / "unet")
    with torch.no_grad():
        unet.conv_in.bias[0] += 1e-3
    unet.save_pretrained(teacher / "unet")
    with pytest.raises(ValueError, match=r"the teacher has changed since .* was started"):
        go(teacher, tmp_path / "student")


def test_a_repaired_shard_joins_the_run_and_a_changed_one_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    for n in range(2):
        shard(tmp_path / f"{n}.tar", range(10 * n, 10 * n + 10), cut=n == 1)
    one: dict[str, Any] = {"plan": "a_sdm", "recipe": recipes.bk_sdm, "split": "train", "steps": 3}
    with pytest.raises(Stop):
        go(tiny_pipeline, tmp_path / "s", data=f"webdataset:{tmp_path}", **one, on_progress=stop_after(1, "distilled"))
    assert DistillRun.load(tmp_path / "s" / "run.json").identity["data_broken"] == ["1.tar"]
    (tmp_path / "0.tar").rename(tmp_path / "kept")
    shard(tmp_path / "0.tar", range(30, 40))
    with pytest.raises(ValueError, match=r"the pictures have changed since .* was started"):
        go(tiny_pipeline, tmp_path / "s", data=f"webdataset:{tmp_path}", **one)
    (tmp_path / "kept").rename(tmp_path / "0.tar")
    shard(tmp_path / "1.tar", range(10, 20))
    go(tiny_pipeline, tmp_path / "s", data=f"webdataset:{tmp_path}/{{0..1}}.tar", **one)
    assert [line["step"] for line in log_of(tmp_path / "s")] == [1, 2, 3]


def test_a_damaged_student_of_an_earlier_stage_is_not_grafted(tiny_pipeline: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "s", ignore=shutil.ignore_patterns("combined", "distill.json"))
    weights = tmp_path / "s" / "stages" / "compressed" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"stages/compressed is damaged: .* trains the stage compressed again"):
        go(tiny_pipeline, tmp_path / "s")


# ---------------------------------------------------------------------------------------------- settings


def test_recipes_fit_their_plan(tiny_pipeline: Path) -> None:
    shapes = loading.meta_unet(load_family(str(tiny_pipeline)))
    plan = students.read_plan("a_sdm_clme", shapes, "tiny").plan
    first, second = recipes.progressive_incubation(topology(shapes), plan, 9)
    assert (first.steps, second.steps) == (4, 5)
    removed = {(edit.block, edit.layer) for edit in first.plan.edits}
    assert {(edit.block, edit.layer) for edit in plan.edits if edit.op == "remove_layer"} <= removed
    assert {block for block, _ in removed} == {f"{side}_blocks.{i}" for side in ("down", "up") for i in range(2)}
    assert second.grafts_from == "compressed"
    with pytest.raises(ValueError, match="--steps must be at least 2 for two stages, got 1"):
        recipes.progressive_incubation(topology(shapes), plan, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"schedule": "step"}, "unknown schedule 'step'; choose from constant, linear, cosine"),
        ({"ema": 1.0}, r"ema must be below 1, got 1\.0"),
        ({"dtype": "fp16"}, "fp16 autocast needs an accelerator"),
        ({"micro_batch": 3}, "--batch must be a multiple of 3 for 1 processes and micro-batches of 3, got 4"),
        ({"data": "imagenet"}, "unknown name 'imagenet' in datasets; choose from emoji"),
        ({"optimizer": "adamw8bit"}, "needs the package 'bitsandbytes'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"only": "third"}, "unknown stage 'third'; choose from compressed, combined"),
        ({"vgg": "nowhere"}, "unknown VGG 'nowhere'; choose mini, imagenet"),
    ],
)
def test_bad_settings_are_one_sentence(tiny_pipeline: Path, tmp_path: Path, changes: Any, message: str) -> None:
    only = {"only": "compressed"} if "vgg" not in changes else {}
    with pytest.raises(ValueError, match=message):
        go(tiny_pipeline, tmp_path / "student", steps=2, **only | changes)


def test_a_dry_run_says_what_would_learn_and_writes_nothing(run: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    command = ["asdm", "distill", "a_sdm_clme", "--teacher", tiny_pipeline, "-o", "student", "--steps", "100"]
    done = run(*command, "--dry-run")
    assert done.code == 0, done.err
    assert "compressed (end_to_end): 50 steps of 16 pictures" in done.out
    assert "share the teacher's memory: 0 parameters" in done.out
    assert "features × 1 at 4 places" in done.out
    assert not (tmp_path / "student").exists()
    result = json.loads(run(*command, "--dry-run", "--json").out)
    first, second = result["stages"]
    assert first["memory"]["optimizer"] == 2 * first["audit"]["trainable"]["bytes"]
    assert second["memory"]["weights"] < first["memory"]["weights"]  # stage 2 has the trunk once
    assert second["memory"]["activations"] > 0


def test_the_command_as_typed(run: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    words = ["asdm", "distill", "a_sdm", "--teacher", tiny_pipeline, "--data", "emoji", "--split", "held_out"]
    words += ["--steps", "3", "--seed", "7", "--batch", "2", "-o", "student"]
    done = run(*words)
    assert done.code == 0, done.err
    assert "Wrote student, a student of" in done.out
    assert [line["step"] for line in log_of(tmp_path / "student")] == [1, 2, 3]
    again = run(*words, "--json")
    assert again.code == 0
    assert json.loads(again.out)["seed"] == 7
    refused = run(*[word if word != "7" else "8" for word in words])
    assert refused.code == 2
    assert "holds another run, with seed 7 instead of 8" in refused.err
    assert "Traceback" not in refused.err
    bad = run(*words, "--weight", "colour=1")
    assert bad.code == 2
    assert "no stage has a loss term 'colour'; choose from denoising, features, mid_block, output" in bad.err


def test_terms_can_be_weighed_left_out_and_balanced(tiny_pipeline: Path, tmp_path: Path) -> None:
    weights = recipes.parse_weights(["features=0", "compressed.self_attention=2", "combined.perceptual=1"])
    recipe = recipes.adjust(recipes.progressive_incubation, None, weights)
    shares: list[dict[str, float]] = []
    go(tiny_pipeline, tmp_path / "student", recipe=recipe, balance=True,
       on_progress=lambda status: shares.append(dict(status.terms)))  # fmt: skip
    first = log_of(tmp_path / "student")[0]
    assert "features" not in first
    assert first["self_attention"] > 0
    begin = next(share for share in shares if share)
    assert begin["self_attention"] == pytest.approx(2 * begin["denoising"], rel=1e-4)
    with pytest.raises(ValueError, match=r"'x' is not of the form TERM=NUMBER"):
        recipes.parse_weights(["x"])


def test_a_recipe_of_ones_own(tiny_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from asdm.distill.recipes import bk_sdm\n"
        "from dataclasses import replace\n"
        "def gentle(topology, plan, steps):\n"
        "    (stage,) = bk_sdm(topology, plan, steps)\n"
        "    return (replace(stage, name='gentle', weights={'output': 1.0}),)\n"
    )
    go(tiny_pipeline, tmp_path / "student", "bk_sdm_small", recipes.load(f"{file}:gentle"), steps=1)
    assert set(log_of(tmp_path / "student")[0]) & {"denoising", "output", "features"} == {"output"}
    with pytest.raises(ValueError, match="has no function 'rough'"):
        recipes.load(f"{file}:rough")
    with pytest.raises(
        ValueError, match="unknown recipe 'fast'; choose from progressive_incubation, without_incubation, bk_sdm"
    ):
        recipes.load("fast")
