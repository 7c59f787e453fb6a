"""Teacher against students on a small whole Stable Diffusion: what is compared, what is composed, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from asdm.cli.bench import print_tables
from asdm.data import datasets
from asdm.evaluate import benchmark
from asdm.evaluate.benchmark import bench
from asdm.evaluate.compared import ComparedUNet, load_weights, with_distinct_names, without_weights
from asdm.evaluate.latency import compose_image, noise_warning
from asdm.evaluate.real_pictures import store_real
from asdm.evaluate.settings import BenchSettings
from asdm.measure import machine
from asdm.models import build, graft, student as students
from asdm.models.components import components_of
from asdm.models.families import load_family
from asdm.models.loading import meta_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.plan.edits import GraftBlock, MeasuredAt, Prediction, PruningPlan
from asdm.plan.presets import PRESETS
from asdm.records.bench import BenchResult
from asdm.records.measurement import Estimate
from asdm.unet.blocks import topology
from tests.pictures import shard
from tests.tiny import TINY_FAMILY, TINY_WHOLE, make_unet

QUICK = BenchSettings(steps=2, min_rounds=2, guided_rounds=2, time_budget_s=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion as diffusers saves one: UNet, text encoder, tokenizer, VAE, scheduler."""
    path = tmp_path_factory.mktemp("whole") / "tiny-sd"
    pipeline(TINY_WHOLE, make_unet(), Setup()).save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def result(folder: Path) -> BenchResult:
    return bench(str(folder), ["a_sdm", "bk_sdm_tiny"], QUICK)


def test_every_student_is_paired_with_its_teacher(result: BenchResult) -> None:
    assert [student.name for student in result.students] == ["a_sdm", "bk_sdm_tiny"]
    for student in result.students:
        pairs = zip(student.unet_latency_s.samples, student.paired_teacher_latency_s.samples, strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
        assert student.unet_latency_ratio.median == pytest.approx(middle)
        assert student.unet_latency_ratio.low <= middle <= student.unet_latency_ratio.high


def test_counts_are_the_networks_own(result: BenchResult) -> None:
    teacher = make_unet()
    assert result.teacher.params == sum(p.numel() for p in teacher.parameters())
    for student in result.students:
        unet, applied = students.build(teacher, students.read_plan(student.name, teacher, "tiny"))
        assert student.params == sum(p.numel() for p in unet.parameters())
        assert student.macs < result.teacher.macs
        assert student.removed == applied.removed


def test_the_image_is_the_sum_of_its_parts(result: BenchResult) -> None:
    """Two prompts encoded, two guided steps, one latent decoded."""
    parts = result.teacher.image_parts
    assert parts is not None
    expected = 2 * parts.text_encoder_s.median + 2 * parts.unet_step_s.median + parts.vae_decoder_s.median
    assert result.teacher.image_latency_s is not None
    assert result.teacher.image_latency_s.median == pytest.approx(expected)
    assert result.pipeline is not None
    assert result.pipeline.composed


def test_a_composed_ratio_is_diluted_by_what_is_not_the_unet() -> None:
    """10 steps of 1.0 s against 0.5 s, beside 10 s of decoding: (5 + 10) / (10 + 10) = 0.75."""
    step = [[1.0] * 4, [0.5] * 4]
    image = compose_image(step, 1, {"vae_decoder": (1, [10.0, 10.0])}, replace(QUICK, steps=10))
    assert image.ratio.median == image.ratio.low == image.ratio.high == 0.75
    assert image.latency_s.median == 15.0


def test_without_guidance_there_is_one_batch_only(folder: Path) -> None:
    found = bench(str(folder), ["a_sdm"], replace(QUICK, guidance_scale=1.0))
    assert found.students[0].guided_latency_ratio is None
    assert found.students[0].image_latency_ratio is not None


def test_the_real_pipeline_runs_from_prompt_to_pixels(folder: Path) -> None:
    found = bench(str(folder), ["a_sdm"], replace(QUICK, run_image=True))
    assert found.pipeline is not None
    assert not found.pipeline.composed
    ratio = found.students[0].image_latency_ratio
    assert ratio is not None
    assert 0.3 < ratio.median < 2


def test_random_parts_make_a_pipeline_too(folder: Path) -> None:
    made = pipeline(TINY_WHOLE, make_unet(), Setup())
    assert [part.name for part in components_of(TINY_WHOLE)] == ["text_encoder", "vae_decoder"]
    image = made("a cat", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (128, 128, 3)


def test_a_family_without_parts_has_no_image() -> None:
    with pytest.raises(ValueError, match="0 text encoders and no VAE"):
        pipeline(TINY_FAMILY, make_unet(), Setup())


def test_a_bench_survives_its_file(result: BenchResult, tmp_path: Path) -> None:
    path = result.save(tmp_path / "bench.json")
    assert BenchResult.load(path) == result
    data = json.loads(path.read_text())
    assert {"name", "params", "macs", "unet_latency_ratio", "predicted_ratio", "image_latency_ratio", "quality"} <= set(
        data["students"][0]
    )


def test_a_prediction_for_the_guided_step_stands_beside_it(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """A GPU's profile is of a guided step by default, a benchmark's UNet calls are of one image."""
    found = []
    for batch in (1, 2):
        at = MeasuredAt(backend="fake", dtype="fp32", device="cpu", threads=1, batch=batch, size=128)
        predicted = Prediction(latency_s=1.0, ratio=0.6, low=0.5, high=0.7)
        edits = PRESETS["bk_sdm_tiny"](topology(make_unet()))
        plan = PruningPlan(name="mine", family="tiny", edits=edits, predicted=predicted, measured_at=at)
        file = plan.save(tmp_path / f"plan-{batch}.json")
        found.append(bench(str(folder), [str(file)], replace(QUICK, backend="fake", threads=1)))
    (alone,), (guided,) = (result.students for result in found)
    assert (alone.warning, guided.warning) == (None, None)
    assert (alone.predicted_guided, guided.predicted_guided) == (False, True)
    assert alone.predicted_latency_ratio == alone.unet_latency_ratio
    assert guided.predicted_latency_ratio == guided.guided_latency_ratio != guided.unet_latency_ratio
    for result, column in zip(found, (False, True), strict=True):
        print_tables(result)
        assert ("guided step" in capsys.readouterr().out) is column
        assert ("in a guided step" in result._repr_html_()) is column


def test_students_race_in_another_backend(folder: Path) -> None:
    """Made-up times are MACs at a fixed rate and 1 ms, so the ratio is known, and no image is made up of them."""
    found = bench(str(folder), ["bk_sdm_tiny"], replace(QUICK, backend="fake"))
    student = found.students[0]
    expected = (1e-3 + student.macs * 1e-11) / (1e-3 + found.teacher.macs * 1e-11)
    assert student.unet_latency_ratio.median == pytest.approx(expected, rel=0.02)
    assert found.backend == "fake"
    assert student.image_latency_ratio is None
    with pytest.raises(ValueError, match="leave it out with the backend fake"):
        bench(str(folder), ["bk_sdm_tiny"], replace(QUICK, backend="fake", run_image=True))


def test_a_machine_that_is_too_noisy_is_named_in_one_sentence(result: BenchResult) -> None:
    """The widest interval is the one that is told, beside the target and what to do."""
    ratios = {"a_sdm": (0.01, 0.03), "bk_sdm_tiny": (0.005, None)}  # half widths of the UNet's and the guided step's
    students = [
        student.model_copy(
            update={
                "unet_latency_ratio": Estimate(median=0.7, low=0.7 - single, high=0.7 + single),
                "guided_latency_ratio": guided and Estimate(median=0.7, low=0.7 - guided, high=0.7 + guided),
            }
        )
        for student in result.students
        for single, guided in [ratios[student.name]]
    ]
    noisy = result.model_copy(update={"students": tuple(students)})
    assert noise_warning(noisy, replace(QUICK, target=0.04)) is None
    assert noise_warning(noisy, replace(QUICK, target=0.02, time_budget_s=75.0)) == (
        "this machine is too noisy for the time budget of 75 s: the latency ratio of the guided step of a_sdm is known "
        "to ±0.030, and the target is ±0.02; close other programs or raise --time-budget."
    )


# ---------------------------------------------------------------------------------------------- grafts

SHALLOW = ("down_blocks.0", "up_blocks.3")


@pytest.fixture(scope="module")
def stage1(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 student's folder, a layer less in every block, trained a little: every weight moved."""
    path = tmp_path_factory.mktemp("first") / "stage1"
    build.build_student("bk_sdm_base", str(tiny_folder), path)
    student = UNet2DConditionModel.from_pretrained(path)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    student.save_pretrained(path, safe_serialization=True)
    return path


def combined(folder: Path, source: Path | None) -> Path:
    """A plan that grafts the shallow pair from `source`."""
    grafts = [GraftBlock(block=block, source=source and str(source)) for block in SHALLOW]
    edits = students.read_plan("a_sdm", make_unet(), "tiny").edits
    return PruningPlan(name="combined", family="tiny", edits=(*edits, *grafts)).save(folder / "plan.json")


def test_a_plan_with_grafts_is_assembled_in_memory(tiny_folder: Path, stage1: Path, tmp_path: Path) -> None:
    path = combined(tmp_path, stage1)
    draft = without_weights(str(path), meta_unet(load_family(str(tiny_folder))), TINY_FAMILY, QUICK)
    teacher = make_unet()
    student = load_weights(draft, teacher, QUICK)
    expected, applied = graft.assemble(teacher, UNet2DConditionModel.from_pretrained(stage1), PruningPlan.load(path))
    assert student.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(student.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    found = bench(str(tiny_folder), [str(path)], QUICK)
    assert found.students[0].name == "combined"
    assert found.students[0].removed == applied.removed
    assert found.students[0].params == sum(p.numel() for p in expected.parameters())


def test_a_plan_whose_grafts_come_from_nowhere_says_what_to_do(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"combined grafts blocks but names no stage-1 student; give .* a source, or"):
        bench(str(tiny_folder), [str(combined(tmp_path, None))], QUICK)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"the stage-1 student must be a folder, got .*gone"):
        bench(str(tiny_folder), [str(combined(tmp_path, tmp_path / "gone"))], QUICK)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0, got -1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be(folder: Path, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bench(str(folder), ["a_sdm"], replace(QUICK, **change))


def test_a_folder_that_is_no_student(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither unet/config\.json nor config\.json"):
        bench(str(folder), [str(tmp_path / "empty")], QUICK)
    with pytest.raises(ValueError, match="at least one student"):
        bench(str(folder), [], QUICK)


def test_folders_of_one_name_are_told_apart_by_their_path(tmp_path: Path) -> None:
    shapes = torch.nn.Identity()
    sources = [tmp_path / "a" / "seed-1", tmp_path / "b" / "seed-1", tmp_path / "b" / "x" / "seed-2"]
    for source in sources:
        source.mkdir(parents=True)
    drafts = [ComparedUNet(source.name, str(source), shapes, shapes) for source in sources]
    preset = ComparedUNet("a_sdm", "a_sdm", shapes, shapes)
    names = [one.name for one in with_distinct_names([*drafts, preset])]
    assert names == ["a/seed-1", "b/seed-1", "seed-2", "a_sdm"]
    assert with_distinct_names([preset, preset]) == [preset, preset], "what is the same cannot be told apart"


def test_more_sessions_than_memory_holds_are_refused_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sessions of SD 1.5 in ONNX Runtime took more than 24 GB."""
    monkeypatch.setattr(machine, "free_memory_bytes", lambda device: int(22.8 * 2**30))
    three = ["a_sdm", "a_sdm_clme", "a_sdm_clme_timestep"]
    with pytest.raises(ValueError, match=r"comparing sd15 in fp32 with 3 students at a time needs about 29\.\d GiB"):
        bench("sd15", three, replace(QUICK, backend="onnxruntime"))


def test_real_pictures_are_read_before_anything_is_timed(
    folder: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "compare_latency", lambda *_: pytest.fail("it came to timing"))
    shard(tmp_path / "a.tar", range(8), broken=(2, 5))
    quality = replace(QUICK, quality=True, pictures=8, judge="mini", size=64)
    with pytest.raises(ValueError, match=r"pictures must be at most the 6 usable examples of webdataset:.*, got 8"):
        bench(str(folder), ["a_sdm"], replace(quality, data=f"webdataset:{tmp_path / 'a.tar'}"))
    with pytest.raises(ValueError, match=r"was not encoded with .*'s encoders"):
        bench(str(folder), ["a_sdm"], replace(quality, data=f"latents:{cached}"))


def test_stored_real_pictures_are_those_of_the_data_set(tmp_path: Path) -> None:
    def stored(name: str) -> tuple[Path, torch.Tensor]:
        found, captions = store_real(
            datasets.open_source(name, "train", 16), name, BenchSettings(pictures=4), None, tmp_path / "kept"
        )
        assert len(captions) == 4
        return found.folder, found.images_in(range(4))

    for n in range(4):
        Image.new("RGB", (16, 16), (60 * n, 0, 0)).save(tmp_path / f"{n}.bmp")
        (tmp_path / f"{n}.txt").write_text(f"number {n}")
    first, images = stored(f"folder:{tmp_path}")
    assert stored(f"folder:{tmp_path}/.")[0] == first
    Image.new("RGB", (16, 16), (0, 255, 0)).save(tmp_path / "2.bmp")  # of the same size
    second, others = stored(f"folder:{tmp_path}")
    assert second != first
    assert not torch.equal(images, others)
