"""What an earlier asdm wrote (tests/fixtures/before_the_move) still loads, says the same, and goes on where it stopped.

Commands and top-level names only: nothing in here knows how the packages are divided into modules.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torchvision.io import read_image

import asdm
import asdm_prof

BEFORE = Path(__file__).parent / "fixtures" / "before_the_move"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# What other processors and versions of torch round differently; measured in the README beside the fixtures.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}
RECORDS = {
    "Profile": ["records/profile.json", "records/profile-fake.json"],
    "PruningPlan": ["records/plan.json", "plans/all_kinds.json", "plans/layers_removed.json"],
    "Frontier": ["records/frontier.json"],
    "Damage": ["records/damage.json"],
    "BuildResult": ["students/all_kinds/build.json", "unfinished/paused/paused/build.json"],
    "DistillResult": ["finished/distill.json", "unfinished/paused/distill.json"],
    "BenchResult": ["records/bench.json"],
    "ExportResult": ["records/export.json"],
    "Validation": ["records/validate.json"],
    "Comparison": ["records/compare.json"],
    "Search": ["records/search.json"],
    "LatentCache": ["latents/cache.json"],
    "DistillRun": ["unfinished/killed/run.json"],
    "ValidationRun": ["unfinished/validate.json.run"],
    "DamageRun": ["unfinished/damage.json.run"],
}
NOW = ("created_utc", "command", "environment")  # of this run, not of what was found


@pytest.fixture
def old(run: Any, tmp_path: Path) -> Path:
    """A copy of what was written, and the working folder of the commands, whose paths in it are relative."""
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def call(run: Any, old: Path) -> Any:
    """Run a command line in the copy; what it printed."""

    def words(line: str) -> str:
        result = run(*shlex.split(line))
        assert result.code == 0, result.err
        return str(result.out)

    return words


@pytest.fixture(scope="module")
def references() -> dict[str, torch.Tensor]:
    """Inputs of a UNet, and by folder what each UNet made of them."""
    return load_file(BEFORE / "outputs.safetensors")


@pytest.fixture(scope="module")
def same_rounding(references: dict[str, torch.Tensor]) -> bool:
    """Whether this processor and this torch round as those did that made the fixtures, by diffusers alone."""
    unet = UNet2DConditionModel.from_pretrained(BEFORE / "teacher" / "unet")
    output = outputs_of(unet, references)
    output.square().mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in unet.parameters()])[::7]
    expected = references["teacher/unet"], references["gradient of teacher/unet"]
    return all(torch.equal(a, b) for a, b in zip((output.detach(), gradient), expected, strict=True))


def outputs_of(unet: Any, references: dict[str, torch.Tensor]) -> torch.Tensor:
    for parameter in unet.parameters():
        parameter.data = parameter.data.clone()  # at an aligned address, which decides how a CPU rounds
    inputs = {name: references[name] for name in ("sample", "timestep", "encoder_hidden_states")}
    return unet.eval()(**inputs).sample


def check(actual: torch.Tensor, expected: torch.Tensor, exact: bool) -> None:
    assert torch.equal(actual, expected) if exact else torch.allclose(actual, expected, **CLOSE)


def check_holds(new: Any, old: Any, where: str = "") -> None:
    """All of `old` is in `new`, with the same values; fields may have been added."""
    if isinstance(old, dict):
        missing = set(old) - set(new) - set(NOW)
        assert not missing, f"{where} has lost {missing}"
        for key in set(old) - set(NOW):
            check_holds(new[key], old[key], f"{where}.{key}")
    elif isinstance(old, list):
        assert len(new) == len(old), where
        for i, (a, b) in enumerate(zip(new, old, strict=True)):
            check_holds(a, b, f"{where}[{i}]")
    elif isinstance(old, float):
        assert new == pytest.approx(old, rel=1e-6, abs=1e-12), where
    else:
        assert new == old, where


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["StudentUNet", "ModelMixin", "__version__"])
def test_a_name_of_the_core_can_be_imported(name: str) -> None:
    assert getattr(importlib.import_module("asdm"), name)


@pytest.mark.parametrize(
    "name",
    [
        "bench",
        "build",
        "diff",
        "distill",
        "env",
        "export",
        "flops",
        "generate",
        "load",
        "plan",
        "profile",
        "rank",
        "report",
    ],
)
def test_a_name_of_the_profiler_can_be_imported(name: str) -> None:
    assert callable(getattr(importlib.import_module("asdm_prof"), name))
    assert name in asdm_prof.__all__


# ---------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in RECORDS.items() for file in files])
def test_a_record_loads_and_keeps_all_that_is_in_it(kind: str, file: str) -> None:
    record = asdm_prof.load(BEFORE / file)
    assert type(record).__name__ == kind
    check_holds(json.loads(record.to_json()), read(BEFORE / file))


def test_records_refer_to_each_other_by_the_same_hashes() -> None:
    def sha256(file: str) -> str:
        return asdm_prof.load(BEFORE / file).sha256()

    plan, bench = read(BEFORE / "records/plan.json"), read(BEFORE / "records/bench.json")
    assert plan["profile_sha256"] == sha256("records/profile.json")
    assert plan["damage_sha256"] == sha256("records/damage.json")
    assert plan["validation_sha256"] == sha256("records/validate.json")
    assert bench["students"][0]["plan_sha256"] == sha256("records/plan.json")
    assert read(BEFORE / "students/all_kinds/build.json")["plan_sha256"] == sha256("plans/all_kinds.json")
    assert read(BEFORE / "records/search.json")["profile_sha256"] == sha256("records/profile.json")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("flops", "asdm-prof flops teacher --json"),
        ("rank", "asdm-prof rank records/profile.json --json"),
        ("diff", "asdm-prof diff records/profile.json records/profile.json --json"),
        (
            "plan",
            "asdm-prof plan --profile records/profile.json --budget 0.9 --validation records/validate.json "
            "--damage records/damage.json -o new.json --json",
        ),
        (
            "frontier",
            "asdm-prof frontier --profile records/profile.json --damage records/damage.json --budget 0.9 --best 2 "
            "--diverse 2 -o new.json --json",
        ),
        (
            "compare",
            "asdm-prof compare records/profile.json records/profile-fake.json --plan records/plan.json --budget 0.9 "
            "-o new.json --json",
        ),
    ],
)
def test_what_follows_from_old_records_is_the_same(call: Any, old: Path, file: str, line: str) -> None:
    check_holds(json.loads(call(line)), read(old / "records" / f"{file}.json"))


def test_a_report_finds_every_old_record(run: Any, old: Path) -> None:
    line = "asdm-prof report records/profile.json --log finished/log.jsonl --format html -o out"
    result = run(*shlex.split(line))
    assert result.code == 0, result.err
    for kind in ("profile", "plan", "bench", "validate", "compare", "damage", "frontier", "search"):
        assert f"records/{kind}.json" in result.err
    assert "finished/log.jsonl" in result.err
    assert (old / "out" / "report.html").stat().st_size > 100_000


# ---------------------------------------------------------------------------------------------- students


@pytest.mark.parametrize(
    ("folder", "plain"),
    [("students/layers_removed", True), ("students/all_kinds", False), ("unfinished/paused/paused", False)],
)
def test_a_student_loads_and_draws_the_same(
    references: dict[str, torch.Tensor], same_rounding: bool, folder: str, plain: bool
) -> None:
    student = (UNet2DConditionModel if plain else asdm.StudentUNet).from_pretrained(BEFORE / folder)
    assert type(student).__name__ == ("UNet2DConditionModel" if plain else "StudentUNet")
    check(outputs_of(student, references), references[folder], same_rounding)


@pytest.mark.parametrize(("name", "dtype"), [("layers_removed", "fp16"), ("all_kinds", "fp32")])
def test_an_old_plan_builds_the_same_student(call: Any, old: Path, name: str, dtype: str) -> None:
    line = f"asdm build plans/{name}.json --teacher teacher --dtype {dtype} -o new --json"
    built, before = json.loads(call(line)), old / "students" / name
    check_holds(built, read(before / "build.json"))
    check_holds(read(old / "new" / "config.json"), read(before / "config.json") | {"_diffusers_version": version()})
    tensors, expected = load_file(old / "new" / WEIGHTS), load_file(before / WEIGHTS)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def version() -> str:
    return str(importlib.import_module("diffusers").__version__)


def test_a_pipeline_with_a_student_in_it_loads(old: Path) -> None:
    """The index names `asdm` and `StudentUNet`, as diffusers wrote it."""
    shutil.rmtree(old / "teacher" / "unet")
    shutil.copytree(old / "students" / "all_kinds", old / "teacher" / "unet")
    shutil.copy(old / "students" / "model_index.json", old / "teacher" / "model_index.json")
    pipeline = DiffusionPipeline.from_pretrained(old / "teacher")
    assert type(pipeline.unet) is asdm.StudentUNet
    assert len(pipeline.unet.config["edits"]) == 8


def test_an_old_student_draws_the_same_picture(call: Any, old: Path) -> None:
    call("asdm generate 'number 3' --family teacher --student students/all_kinds --steps 2 --seed 1 -o new.png")
    new, before = (read_image(str(old / name)).int() for name in ("new.png", "drawn.png"))
    assert (new - before).abs().max() <= 1


# ---------------------------------------------------------------------------------------------- caches


def cache_command(output: str) -> str:
    return f"asdm cache folder:photos --teacher teacher --per-shard 3 --dtype fp32 -o {output}"


def test_an_unfinished_cache_goes_on(call: Any, old: Path, same_rounding: bool) -> None:
    folder = old / "unfinished" / "latents"
    first = (folder / "latents-00000.safetensors").read_bytes()
    assert read(folder / "cache.json")["next_index"] == 3
    call(cache_command("unfinished/latents"))
    check_holds(read(folder / "cache.json"), read(old / "latents" / "cache.json"))
    assert (folder / "latents-00000.safetensors").read_bytes() == first
    for n in range(3):
        new, expected = (load_file(at / f"latents-{n:05d}.safetensors") for at in (folder, old / "latents"))
        assert new.keys() == expected.keys()
        for name in expected:
            check(new[name], expected[name], same_rounding)


def test_a_finished_cache_is_left_alone(call: Any, old: Path) -> None:
    before = contents(old / "latents")
    call(cache_command("latents"))
    assert contents(old / "latents") == before


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------------------------------------- distillations

TRAIN = "asdm distill a_sdm_clme --teacher teacher --steps 8 --batch 2 --learning-rate 1e-3 --threads 1 --warm-up 1 "


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        ("killed", "--data latents:latents --ema 0", 2),  # in the first stage, one step after its checkpoint
        ("paused", "--data folder:photos --ema 0.9", 6),  # in the second stage
    ],
)
def test_an_unfinished_distillation_goes_on_to_the_same_end(
    call: Any, old: Path, references: Any, same_rounding: bool, name: str, options: str, kept: int
) -> None:
    folder, expected = old / "unfinished" / name, old / "expected" / name
    before = (folder / "log.jsonl").read_text().splitlines()
    call(f"{TRAIN} {options} -o unfinished/{name}")
    after = (folder / "log.jsonl").read_text().splitlines()
    assert after[:kept] == before[:kept]  # steps before the checkpoint are not taken again
    unbroken = (expected / "log.jsonl").read_text().splitlines()
    assert len(after) == len(unbroken) == 8
    for line, expected_line in zip(map(json.loads, after), map(json.loads, unbroken), strict=True):
        for key in expected_line.keys() - {"step_s", "images_per_s"}:
            value, wanted = line[key], expected_line[key]
            if not same_rounding and isinstance(wanted, float):
                wanted = pytest.approx(wanted, rel=CLOSE["rtol"])
            assert value == wanted, f"{key} of step {line['step']}"
    assert not (folder / "paused").exists()
    student = asdm.StudentUNet.from_pretrained(folder)
    check(outputs_of(student, references), references[f"unfinished/{name}"], same_rounding)
    if same_rounding:
        result = asdm_prof.load(folder / "distill.json")
        assert result.student_sha256 == (expected / "student_sha256").read_text().strip()  # type: ignore[attr-defined]


def test_a_finished_distillation_is_left_alone(call: Any, old: Path) -> None:
    before = contents(old / "finished")
    result = json.loads(call(f"{TRAIN} --data folder:photos --ema 0.9 -o finished --json"))
    assert result == read(old / "finished" / "distill.json")
    assert contents(old / "finished") == before


def test_another_distillation_is_still_told_apart(run: Any, old: Path) -> None:
    result = run(*shlex.split(f"{TRAIN} --data folder:photos --ema 0.9 --seed 1 -o unfinished/paused"))
    assert result.code == 2
    assert "seed" in result.err


# ---------------------------------------------------------------------------------------------- measurements


def test_an_unfinished_measurement_of_damage_goes_on(call: Any, old: Path) -> None:
    """One of two batches was measured: four of five pictures."""
    shutil.copy(old / "unfinished" / "damage.json.run", old / "new.json.run")
    line = "asdm-prof sensitivity teacher --data emoji --prompts 5 --timesteps 16 --plans 3"
    line += " --replacement gri_attention --threads 1"
    new, before = json.loads(call(f"{line} -o new.json --json")), read(old / "records" / "damage.json")
    assert [edit["edit"] for edit in new["edits"]] == [edit["edit"] for edit in before["edits"]]
    for edit, expected in zip(new["edits"], before["edits"], strict=True):
        assert edit["by_prompt"][:4] == pytest.approx(expected["by_prompt"][:4], rel=1e-9)
    assert not (old / "new.json.run").exists()


def test_an_unfinished_validation_goes_on(call: Any, old: Path) -> None:
    """Two of three plans were measured."""
    shutil.copy(old / "unfinished" / "validate.json.run", old / "new.json.run")
    line = "asdm-prof validate teacher --plans 3 --profile records/profile.json --time-budget 1 -o new.json --json"
    new, before = json.loads(call(line)), read(old / "unfinished" / "validate.json.run")
    check_holds(new["plans"][:2], before["plans"])
    assert len(new["plans"]) == 3
