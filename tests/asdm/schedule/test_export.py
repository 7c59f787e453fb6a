"""A schedule exported as graphs: what is written, that it draws what eager draws, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asdm.models.settings import Setup
from asdm.records.build import ExportResult
from asdm.schedule.graphs import export as exporter
from asdm.schedule.schedule import Forecast, Pass, Schedule

STEPS = ("full", "full", "branch", "branch", "guide", "none")
PASSES = {
    "full": Pass(),
    "branch": Pass(inherit=("up_blocks.0.layer.0", "down_blocks.0"), forecast=Forecast(order=1)),
    "guide": Pass(unconditional=("unet",)),
    "none": Pass(inherit=("unet",)),
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("schedule") / "planned.json"
    Schedule(family="teacher", passes=PASSES, steps=STEPS, sampler="another", weights_sha256="a" * 64).save(file)
    return file


@pytest.fixture(scope="module")
def exported(smallest_pipeline: Path, planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "graphs"
    exporter.export_schedule(
        str(smallest_pipeline), str(planned), "onnx", folder, Setup(), len(STEPS), force=False, tell=lambda *_: None
    )
    return folder


def test_an_exported_schedule_says_what_each_graph_takes_and_gives(exported: Path) -> None:
    result = ExportResult.load(exported / "export.json")
    assert result.passes == {
        "full": ("pass-0/model.onnx",),
        "branch": ("pass-1/model.onnx",),
        "guide": ("pass-2/model.onnx",),
        "none": (),
    }
    full, branch, guide = result.graphs
    assert [value.fqn for value in full.keeps] == ["down_blocks.0", "up_blocks.0.resnets.0", "up_blocks.0.attentions.0"]
    assert ({*branch.inherits}, guide.inherits) == ({*full.keeps}, ())
    assert (full.latents, guide.latents) == ((2, 4, 8, 8), (1, 4, 8, 8))
    assert len(branch.inputs) == 3 + sum(value.tensors for value in branch.inherits)
    assert 0 < max(graph.difference or 0.0 for graph in result.graphs) == result.difference < 1e-3
    assert str(exported) in exporter.describe(result, exported)


def test_generate_draws_with_exported_graphs_what_it_draws_in_eager(
    run: Any, exported: Path, planned: Path, smallest_pipeline: Path
) -> None:
    def drawn(name: str, schedule: Path, *more: str) -> np.ndarray:
        words = ("--family", smallest_pipeline, "--steps", "6", "--schedule", schedule, "-o", name, *more)
        done = run("asdm", "generate", "a heart", *words)
        assert done.code == 0, done.err
        assert "Warning: schedule was planned on another calibration: sampler DDIMScheduler (planned for" in done.err
        assert "(planned for aaaaaaaaaaaa); its damage here is unknown." in done.err
        return np.asarray(Image.open(name)).astype(int)

    eager, graphs = drawn("a.png", planned), drawn("b.png", exported)
    assert np.abs(eager - graphs).max() <= 2
    assert eager.std() > 2

    def refusal(*words: Any) -> str:
        done = run("asdm", "generate", "a heart", "--steps", "6", "--schedule", exported, "-o", "c.png", *words)
        assert done.code == 2
        return str(done.err)

    assert "was exported for latents of 1×4×8×8 or 2×4×8×8, got 2×4×16×16; draw one image at a time" in refusal(
        "--family", smallest_pipeline, "--size", "128"
    )
    assert "was exported from other weights" in refusal("--family", smallest_pipeline, "--weights", "random")


def test_damaged_folders_are_refused_in_a_sentence(
    run: Any, exported: Path, smallest_pipeline: Path, tmp_path: Path
) -> None:
    record = json.loads((exported / "export.json").read_text())
    first = record["graphs"][0]
    keeps = [value | {"structure": "[1, {}]"} for value in first["keeps"]]
    for changes, message in (
        ({"graphs": []}, "holds no graphs of a schedule; `asdm export --schedule` writes them."),
        ({"graphs": [first | {"file": "../secret/model.onnx"}]}, "graphs.0.file"),
        ({"graphs": [first | {"file": "pass-9/model.onnx"}]}, "onnxruntime cannot open"),
        ({"graphs": [first | {"keeps": keeps}]}, "has no structure of arrays"),
    ):
        folder = tmp_path / "damaged"
        shutil.copytree(exported, folder, dirs_exist_ok=True)
        (folder / "export.json").write_text(json.dumps(record | changes))
        words = ("--family", smallest_pipeline, "--steps", "6", "--schedule", folder, "-o", "a.png")
        refused = run("asdm", "generate", "a heart", *words)
        assert refused.code == 2, changes
        assert message in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "coreml"), "a schedule is exported as graphs; choose --to onnx or openvino, got coreml."),
        (("--dtype", "bf16"), "the graphs of a schedule are exported in fp32, got bf16"),
        (("--lora", "x.safetensors"), "leave out --lora or --schedule"),
        (("--schedule", "faster"), "'faster' is neither a schedule file"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_sentence(run: Any, words: tuple[str, ...], said: str) -> None:
    done = run("asdm", "export", "mini", "--schedule", "every_n:n=2", "-o", "out", *words)
    assert done.code == 2
    assert said in done.err


@pytest.mark.slow
def test_a_preset_is_exported_to_openvino(run: Any, smallest_pipeline: Path) -> None:
    words = ("--schedule", "every_n:n=3", "--steps", "6", "--to", "openvino", "-o", "ov", "--json")
    done = run("asdm", "export", smallest_pipeline, *words)
    assert done.code == 0, done.err
    assert [graph["file"] for graph in json.loads(done.out)["graphs"]] == ["pass-0/openvino_model.xml"]
    draw = ("--family", smallest_pipeline, "--steps", "6", "--schedule", "ov", "-o", "a.png")
    assert run("asdm", "generate", "a heart", *draw).code == 0
