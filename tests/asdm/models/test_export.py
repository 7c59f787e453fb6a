"""What is exported runs without this package and gives PyTorch's output at every batch that it says it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from asdm.measure.backends import _onnx, onnxruntime
from asdm.models import build as builder, export as exporter, loading, student as students
from asdm.models.example_inputs import unet_inputs
from asdm.models.families import Family, load_family
from asdm.models.loading import load_unet
from asdm.models.settings import Setup
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.records.build import ExportResult
from tests.asdm.unet.test_replacements import open_gates
from tests.tiny import SMALL, SMALLEST, TINY, make_unet

GRI = ReplaceUnit(unit="down_blocks.0.attentions.0", with_="gri_attention")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UNet with global-regional attention in its shallowest block, as `asdm build` saves it.

    Its teacher sends 16 tokens, and has a VAE with 4 pixels per latent pixel.
    """
    plan, teacher = PruningPlan(family="small", edits=(GRI,)), make_unet(**SMALLEST)
    vae = {"block_out_channels": [8] * 3, "norm_num_groups": 4}
    family = Family(name="small", title="Small", size=64, unet=TINY | SMALLEST, vae=vae, tokens=16)
    unet, _ = students.build(teacher, plan)
    shapes = loading.meta_unet(family)
    small, applied = students.build(shapes, plan)
    costs = builder.count(family, shapes), builder.count(family, small)
    result = builder.record(plan, family, "random", shapes, small, applied, costs)
    folder = tmp_path_factory.mktemp("student") / "student"
    students.save(unet, plan, result, folder)
    return folder


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult]:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    return folder, exporter.export(str(student), "onnx", folder, Setup(size=(48, 64)))


def test_a_student_in_onnx_takes_any_batch(student: Path, exported: tuple[Path, ExportResult]) -> None:
    folder, result = exported
    assert (result.batch, result.why_fixed, result.size) == (None, None, (48, 64))
    assert result.difference is not None
    assert 0 < result.difference < 1e-3
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "export.json", "model.onnx", "model.onnx.data"
    ]  # fmt: skip
    assert ExportResult.load(folder / "export.json") == result
    assert difference(student, folder, batch=5) < 1e-3


def test_a_graph_takes_other_sizes_and_says_where_it_comes_from(
    student: Path, exported: tuple[Path, ExportResult]
) -> None:
    folder, result = exported
    assert (result.side_step, result.why_static) == (8, None)  # averages of 2×2
    assert difference(student, folder, batch=1, more=(4, -6)) < 1e-3
    facts = {prop.key: prop.value for prop in onnx.load(folder / "model.onnx", load_external_data=False).metadata_props}
    assert facts["asdm.source_sha256"] == result.source_sha256
    assert facts["asdm.license"] == result.license
    assert facts["asdm.tokens"] == "16"


def test_mixed_kernels_take_any_batch(tmp_path: Path) -> None:
    """One file does for every batch, whether each image has a kernel of its own or the batch has one."""
    edits = tuple(
        ReplaceUnit(unit=f"up_blocks.0.resnets.{layer}", with_="cond_conv", options={"gate": gate})
        for layer, gate in enumerate(("input", "timestep"))
    )
    unet, _ = students.build(make_unet(**SMALLEST), PruningPlan(family="small", edits=edits))
    open_gates(unet).save_pretrained(tmp_path / "student", safe_serialization=True)
    result = exporter.export(str(tmp_path / "student"), "onnx", tmp_path / "onnx")
    assert (result.batch, result.why_fixed) == (None, None)
    for batch in (1, 2, 3, 5):
        assert difference(tmp_path / "student", tmp_path / "onnx", batch, timesteps=1) < 1e-3
    assert "one timestep for the whole batch" in exporter.describe(result, tmp_path / "onnx")
    inputs = unet_inputs(load_family(str(tmp_path / "student")), 2)
    call = _onnx.Call(unet, inputs | {"timestep": torch.tensor([10, 900])})
    refused = onnxruntime.ort.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(refused, match=r"(?s)timestep.*Expected: 1"):
        onnxruntime.evaluate(tmp_path / "onnx" / "model.onnx", call.feed())
    facts = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).metadata_props
    assert {prop.key: prop.value for prop in facts}["asdm.timesteps"] == "one for the whole batch"


def difference(student: Path, exported: Path, batch: int, more: tuple[int, int] = (0, 0), timesteps: int = 0) -> float:
    """Of a graph's output from PyTorch's at one batch and size, as a share of the largest."""
    family = load_family(str(student))
    inputs = unet_inputs(family, batch, seed=3, more=more)  # neither what was traced nor what was compared
    inputs["timestep"] = inputs["timestep"][: timesteps or batch]
    call = _onnx.Call(load_unet(family, str(student)), inputs)
    feed = {name: tensor.numpy() for name, tensor in zip(call.names, call.tensors, strict=True)}
    with torch.no_grad():
        expected = call(*call.tensors).numpy()
    out = onnxruntime.evaluate(exported / "model.onnx", feed)
    assert out.shape == expected.shape
    return float(np.abs(out - expected).max() / np.abs(expected).max())


def test_the_words_say_what_it_takes(exported: tuple[Path, ExportResult]) -> None:
    folder, result = exported
    text = exporter.describe(result, folder)
    assert "any batch at any multiples of 8 pixels and a prompt of 16 tokens" in text
    fixed = result.model_copy(update={"batch": 1, "why_fixed": "Constraints violated (batch)!"})
    assert "batch 1 only" in exporter.describe(fixed, folder)
    assert "Constraints violated" in exporter.describe(fixed, folder)


def test_a_graph_that_freezes_its_batch_is_exported_at_one(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free batch that gives a wrong output at the other batch is not handed over."""
    real, asked = _onnx.export, []

    def export(module: Any, inputs: Any, folder: Path, batch_name: str | None = None, **more: Any) -> Path:
        asked.append((batch_name, more.get("side_step")))
        return real(module, inputs, folder) if len(asked) == 3 else folder

    def difference(unet: Any, inputs: dict[str, Any], *_: Any) -> float:
        return 0.5 if inputs["sample"].shape[0] == exporter.OTHER_BATCH else 1e-6

    monkeypatch.setattr(_onnx, "export", export)
    monkeypatch.setattr(exporter, "_difference", difference)
    result = exporter.export(str(student), "onnx", tmp_path / "onnx")
    assert asked == [("batch", 2), ("batch", None), (None, None)]
    assert result.side_step is None
    assert "batch 3 and another size" in str(result.why_static)
    assert result.batch == 1
    assert "batch 3" in str(result.why_fixed)


def test_a_graph_with_another_output_is_refused(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx, "export", lambda *_, **__: None)
    monkeypatch.setattr(exporter, "_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="its output at batch 1 is nan of the largest"):
        exporter.export(str(student), "onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_openvino_gets_its_own_form(student: Path, tmp_path: Path) -> None:
    result = exporter.export(str(student), "openvino", tmp_path / "ov")
    assert sorted(file.name for file in (tmp_path / "ov").iterdir()) == [
        "config.json",
        "export.json",
        "openvino_model.bin",
        "openvino_model.xml",
    ]
    assert result.difference is not None
    assert result.difference < 1e-3
    assert str(result.source_sha256) in (tmp_path / "ov" / "openvino_model.xml").read_text()


def test_a_diffusers_folder_of_another_dtype(tmp_path: Path) -> None:
    source = tmp_path / "unet"
    make_unet(**SMALL).save_pretrained(source, safe_serialization=True)
    result = exporter.export(str(source), "diffusers", tmp_path / "bf16", Setup(dtype="bf16"))
    assert result.plain_diffusers
    with safe_open(tmp_path / "bf16" / "diffusion_pytorch_model.safetensors", "pt") as opened:
        assert opened.metadata()["asdm.source_sha256"] == result.source_sha256
    again = UNet2DConditionModel.from_pretrained(tmp_path / "bf16", torch_dtype=torch.bfloat16)
    assert torch.equal(again.conv_in.weight, make_unet(**SMALL).bfloat16().conv_in.weight)


def test_a_student_in_diffusers_form_says_what_loads_it(student: Path, tmp_path: Path) -> None:
    result = exporter.export(str(student), "diffusers", tmp_path / "copy")
    assert result.plain_diffusers is False
    assert "asdm.StudentUNet" in exporter.describe(result, tmp_path / "copy")


@pytest.mark.parametrize(
    ("to", "change", "words"),
    [
        ("tflite", {}, "unknown target 'tflite'; choose from onnx, openvino, coreml, diffusers"),
        ("onnx", {"dtype": "bf16"}, "onnx is exported in fp32, got bf16"),
        ("onnx", {"size": 102}, "size 102 does not fit"),
    ],
)
def test_what_cannot_be_exported_gets_one_sentence(
    student: Path, tmp_path: Path, to: str, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        exporter.export(str(student), to, tmp_path / "out", Setup(**change))


def test_every_condition_of_a_unet_is_an_input_of_its_graph(tmp_path: Path) -> None:
    unet = make_unet(
        **SMALLEST,
        time_cond_proj_dim=24,
        num_class_embeds=10,
        encoder_hid_dim=48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 5 * 8,  # as wide as the text and five numbers: SDXL's refiner
    )
    unet.save_pretrained(tmp_path / "unet", safe_serialization=True)
    result = exporter.export(str(tmp_path / "unet"), "onnx", tmp_path / "onnx")
    assert (result.batch, result.why_fixed) == (None, None)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    shapes = {node.name: [d.dim_value for d in node.type.tensor_type.shape.dim[1:]] for node in graph.input}
    assert shapes == {
        "sample": [4, 0, 0], "timestep": [], "encoder_hidden_states": [77, 48], "class_labels": [],
        "timestep_cond": [24], "text_embeds": [32], "time_ids": [5],
    }  # fmt: skip
