"""`asdm generate` and `asdm bench --quality` as their users type them, on the mini that ships."""

import base64
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image

from asdm.cli import bench, progress
from asdm.evaluate import metrics
from asdm.models import build, export
from asdm.models.drawing import check
from asdm.models.families import Family, load_family
from asdm.models.loading import load_unet
from asdm.models.settings import GenerateSettings
from asdm.records.build import BuildResult, ExportResult, FreezeAudit, Tensors
from asdm.records.distill import DistillResult, StageResult
from asdm.schedule.graphs import export as graphs
from asdm.schedule.schedule import Pass, Schedule
from tests.asdm_prof import synthetic
from tests.commands import files_in


def test_bench_runs_schedules_on_teacher_and_student(run):
    steps, passes = ("full", "none") * 2, {"full": Pass(), "none": Pass(inherit=("unet",))}
    Schedule(family="mini", passes=passes, steps=steps, sampler="another").save("half.json")
    words = ("--teacher", "mini", "--schedule", "half.json", "--student", "bk_sdm_small", "--steps", "4")
    done = run("asdm", "bench", *words, "--time-budget", "1", "--json", "-o", "bench.json")
    assert done.code == 0, done.err
    teacher, student = json.loads(done.out)["schedules"]
    assert (teacher["name"], student["name"]) == ("half.json", "half.json on bk_sdm_small")
    assert all("(planned for another); its damage here is unknown" in one["warning"] for one in (teacher, student))
    assert teacher["macs_ratio"] == student["macs_ratio"] == 0.5
    assert student["macs_per_image"] < teacher["macs_per_image"]
    assert teacher["image_latency_ratio"]["median"] > 0  # a half in peace, as the multiply-adds say
    refused = run("asdm", "bench", "--teacher", "mini", "--schedule", "every_n", "--backend", "onnxruntime")
    assert refused.code == 2
    assert "leave --schedule out with the backend onnxruntime" in refused.err


def test_generate_draws_by_a_schedule(run):
    """Every step in full changes nothing; a schedule for another number of steps is refused."""
    for name, more in (("a", ()), ("b", ("--schedule", "every_n:n=1")), ("c", ("--schedule", "taylor:n=2"))):
        words = ("a red heart", "-o", f"{name}.png", "--steps", "4", *more)
        assert run("asdm", "generate", *words).code == 0
    first, same, other = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert first == same
    assert first != other
    unknown = run("asdm", "generate", "a red heart", "-o", "d.png", "--schedule", "faster")
    assert unknown.code == 2
    assert (
        "'faster' is neither a schedule file, nor a folder of exported graphs, nor a preset; choose from" in unknown.err
    )


def test_a_prompt_becomes_a_png_that_depends_on_its_seed_alone(run: Any, tmp_path: Path) -> None:
    def draw(name: str, *more: str) -> np.ndarray:
        done = run("asdm", "generate", "a red heart, twemoji style", "-o", name, "--steps", "4", *more)
        assert done.code == 0, done.err
        assert done.out == ""
        return np.asarray(Image.open(tmp_path / name))

    first, again, other = draw("a.png"), draw("b.png"), draw("c.png", "--seed", "1")
    assert first.shape == (96, 96, 3)
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "heart.jpg"], "the output must be a .png file, got heart.jpg."),
        (["-o", "there.png"], "there.png exists; name another output or add --force."),
        (["-o", "x.png", "--steps", "0"], "steps must be at least 1, got 0."),
        (["-o", "x.png", "--size", "60"], "size 60 does not fit mini: choose a multiple of 32 pixels, such as 96."),
        (["-o", "x.png", "--size", "64x60"], "size 64x60 does not fit mini: choose multiples of 32 pixels"),
        (["-o", "x.png", "--size", "64x"], "size must be pixels per side (512) or WIDTHxHEIGHT (512x768), got '64x'."),
        (["-o", "x.png", "--init-image", "there.png"], "there.png is not an image file; choose one in JPEG, PNG"),
        (["-o", "x.png", "--control", "net/"], "give both --control and --control-image"),
        (["-o", "x.png", "--scheduler", "k_lms"], "unknown scheduler 'k_lms'; choose from ddim, ddpm"),
        (["-o", "x.png", "--strength", "0"], "strength must be above 0, got 0.0."),
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


def test_a_strength_that_is_offered_is_accepted(tmp_path: Path) -> None:
    family, start = load_family("mini"), tmp_path / "start.png"
    Image.new("RGB", (64, 64)).save(start)
    for steps in (1, 3, 7, 30, 49, 1000):
        settings = GenerateSettings(steps=steps, strength=0.5 / steps, init_image=str(start))
        with pytest.raises(ValueError, match="a strength of at least") as caught:
            check(family, settings)
        offered = float(str(caught.value).rpartition(" ")[2].rstrip("."))
        check(family, replace(settings, strength=offered))


def test_pictures_of_all_kinds(run: Any, tmp_path: Path) -> None:
    """Several prompts, another shape, a sampler, a negative prompt, from an image and with a ControlNet."""
    family = load_family("mini")
    net = ControlNetModel.from_unet(unet_of(family), conditioning_embedding_out_channels=(16, 32, 96))
    net.save_pretrained(tmp_path / "net")
    assert run("asdm", "build", "bk_sdm_tiny", "--teacher", "mini", "-o", "student").code == 0

    def draw(name: str, *more: str) -> np.ndarray:
        done = run("asdm", "generate", "a red heart", "-o", name, "--steps", "2", *more)
        assert done.code == 0, done.err
        return np.asarray(Image.open(tmp_path / name))

    plain = draw("plain.png")
    assert draw("wide.png", "--size", "96x64", "--negative", "yellow", "--scheduler", "euler").shape == (64, 96, 3)
    start = np.asarray(Image.open(tmp_path / "wide.png").resize((96, 96), Image.Resampling.LANCZOS)).astype(float)
    near = draw("near.png", "--init-image", "wide.png", "--strength", "0.5")
    assert np.abs(near - start).mean() < np.abs(plain - start).mean()
    student = draw("student.png", "--student", "student")
    control = ["--control", "net", "--control-image", "plain.png"]
    assert (draw("controlled.png", "--student", "student", *control) == student).all()  # its convolutions are zero
    assert run("asdm", "export", "student", "--to", "single_file", "-o", "student.safetensors").code == 0
    done = run("asdm", "generate", "a heart", "--student", "student.safetensors", *control, "-o", "x.png")
    assert done.code == 2
    assert "does not say which skips of its teacher it has" in done.err
    assert draw("both.png", *control, "--init-image", "wide.png").shape == (96, 96, 3)
    assert draw("half.png", "--init-image", "wide.png", "--dtype", "fp16").shape == (96, 96, 3)  # the VAE is in fp32
    assert run("asdm", "generate", "a red heart", "a moon", "-o", "two.png", "--steps", "1").code == 0
    one, two = (np.asarray(Image.open(tmp_path / f"two-{i}.png")) for i in (1, 2))
    assert (one != two).any()


def test_a_controlnet_of_pickles_is_refused_and_runs_nothing(run: Any, tmp_path: Path) -> None:
    """What a pickle does when it is read must not happen: this one would write a file."""

    class Attack:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "attacked").touch, ()

    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    (tmp_path / "net" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    Image.new("RGB", (96, 96)).save(tmp_path / "lines.png")
    done = run("asdm", "generate", "a heart", "-o", "x.png", "--control", "net", "--control-image", "lines.png")
    assert done.code == 2
    assert "net/diffusion_pytorch_model.bin is a pickle, which can run code" in done.err
    assert not (tmp_path / "attacked").exists()
    assert not (tmp_path / "x.png").exists()


def unet_of(family: Family) -> UNet2DConditionModel:
    unet = load_unet(family, str(family.folder))
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def test_a_student_draws_and_is_judged_beside_its_teacher(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "HALVES", 8)  # behind an interval's width, which nothing here looks at
    assert run("asdm", "build", "bk_sdm_small", "--teacher", "mini", "-o", "student").code == 0
    assert json.loads((tmp_path / "student" / "build.json").read_text())["weights"] == "shipped"  # not where they lie
    drawn = run("asdm", "generate", "a red heart", "--student", "student", "-o", "heart.png", "--steps", "2")
    assert drawn.code == 0, drawn.err
    built = json.loads((tmp_path / "student" / "build.json").read_text())
    Path("other").mkdir()
    for file in (tmp_path / "student").iterdir():
        Path("other", file.name).write_bytes(file.read_bytes())
    assert built["prediction_type"] == "v_prediction"
    Path("other", "build.json").write_text(json.dumps(built | {"prediction_type": "sample"}))
    other = run("asdm", "generate", "a red heart", "--student", "other", "-o", "other.png")
    assert other.code == 2
    assert "other predicts sample, and mini draws with v_prediction; name its own --family" in other.err

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
        assert set(metric) - {"note"} == {"value", "low", "high", "teacher", "noise_floor"}
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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pictures", "5000"], "at most the number of examples, got 5000: emoji has 1822 in its split"),
        (["--pictures", "3"], "at least 4 and at most the number of examples, got 3"),
        (
            ["--pictures", "1", "--metric", "latent_mse_to_teacher"],
            "at least 2 and at most the number of examples, got 1",
        ),
    ],
)
def test_too_few_or_many_pictures_are_refused_before_anything_is_timed(run: Any, more: list[str], said: str) -> None:
    """Distances of sets are those of halves too, each of which needs two pictures."""
    done = run("asdm", "bench", "--teacher", "mini", "--student", "a_sdm", "--quality", *more)
    assert done.code == 2
    assert said in done.err


HOSTILE = "a\x1b[31m\nrm -rf b"


def test_names_of_files_are_text_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What `build`, `export`, `bench`, `distill` and `cache` print holds no control character of a name in a file."""
    counts: dict[str, Any] = dict.fromkeys(("params", "macs", "teacher_params", "teacher_macs"), 10)
    tensors = Tensors(names=(), params=0, bytes=0)
    audit = FreezeAudit(trainable=tensors, frozen=tensors, shared_with_teacher=tensors)
    built = BuildResult(
        name=HOSTILE, family=HOSTILE, weights="random", removed=(), replaced={}, name_map={}, plain_diffusers=True,
        plan_sha256="a" * 64, stage1=HOSTILE, audit=audit, **counts,
    )  # fmt: skip
    about: dict[str, Any] = {"family": HOSTILE, "dtype": "fp32", "params": 1, "source_sha256": "a" * 64}
    single = ExportResult(
        to="single_file", layout="comfyui", pipeline=HOSTILE, base_model=HOSTILE, license=HOSTILE, left_out=(HOSTILE,),
        **about,
    )  # fmt: skip
    graphs_written = ExportResult(to="onnx", difference=0.0, passes={HOSTILE: ()}, **about)
    stage = StageResult(
        name="combined", mode="end_to_end", steps=1, seconds=1.0, first={}, last={}, audit=audit,
        why_skipped={HOSTILE: 1}, teacher_sha256="", overhead=0.0,
    )  # fmt: skip
    trained = DistillResult(
        created_utc="", name="x", family=HOSTILE, data="x", seed=0, plan_sha256="", student_sha256="a", stages=(stage,)
    )
    teacher = synthetic.bench().teacher.model_copy(update={"name": HOSTILE})
    bench.print_tables(synthetic.bench().model_copy(update={"teacher": teacher, "students": (), "schedules": ()}))
    texts = {
        "build": build.describe(built, tmp_path),
        "export": export.describe(single, tmp_path),
        "graphs": graphs.describe(graphs_written, tmp_path),
        "distill": progress.result_text(trained, tmp_path),
        "bench": capsys.readouterr().out,
    }
    for name, text in texts.items():
        assert "a?[31m?rm -rf b" in text, name
        assert "\x1b" not in text, name
        assert "\nrm" not in text, name
