"""Core ML: what is written beside the program is PyTorch's own output, and a Mac's script compares with it."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asdm.models import coreml, export as exporter, student as students
from asdm.models.settings import Setup
from asdm.plan.edits import PruningPlan, ReplaceUnit
from tests.tiny import SMALLEST, make_unet, run, unet_args

SCRIPT = Path(coreml.__file__).with_name("coreml_latency.py")


def student_with(replacement: str):
    edits = (ReplaceUnit(unit="down_blocks.0.attentions.0", with_=replacement),)
    return students.build(make_unet(**SMALLEST), PruningPlan(family="small", edits=edits))[0]


def test_without_coremltools_it_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(ValueError, match=r"^coreml needs the package 'coremltools', which is not installed"):
        exporter.export("sd15", "coreml", tmp_path / "out")
    with pytest.raises(ValueError, match=r"^coreml computes in fp32 or fp16, got bf16\.$"):
        exporter.export("sd15", "coreml", tmp_path / "out", Setup(dtype="bf16"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("replacement", ["gri_attention", "kv_downsample"])
def test_no_tensor_has_more_dimensions_than_core_ml_takes(replacement):
    class Ranks(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.most = max([self.most, *(t.dim() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t))])
            return out

    with Ranks() as ranks:
        run(student_with(replacement))
    assert ranks.most == 5


def test_a_student_is_converted_with_what_a_mac_compares(tmp_path):
    coremltools = pytest.importorskip("coremltools")
    unet = student_with("gri_attention")
    unet.save_pretrained(tmp_path / "student", safe_serialization=True)
    result = exporter.export(str(tmp_path / "student"), "coreml", tmp_path / "out", Setup(dtype="fp16", size=(64, 128)))
    assert (result.batch, result.size, result.dtype, result.difference) == (2, (64, 128), "fp16", None)
    said = exporter.describe(result, tmp_path / "out")
    assert "batch 2 at 64×128 only (static) and a prompt of 77 tokens, and was not run here: on a Mac, `python" in said
    model = coremltools.models.MLModel(str(tmp_path / "out" / coreml.MODEL), skip_model_load=True)
    shapes = {one.name: list(one.type.multiArrayType.shape) for one in model.get_spec().description.input}
    assert shapes == {"sample": [2, 4, 16, 8], "timestep": [2], "encoder_hidden_states": [2, 77, 32]}
    assert model.user_defined_metadata["asdm.source_sha256"] == result.source_sha256
    with np.load(tmp_path / "out" / coreml.CHECK) as file:
        given = {name: torch.from_numpy(file[name]) for name in shapes}
        with torch.no_grad():
            assert np.array_equal(unet(**given, return_dict=False)[0].numpy(), file["out_sample"])
    assert (tmp_path / "out" / coreml.SCRIPT).read_text() == SCRIPT.read_text()


def test_the_script_compares_and_times(tmp_path, monkeypatch, capsys):
    """With a stand-in for Core ML that is 0.25 off."""
    args = {name: value for name, value in unet_args().items() if torch.is_tensor(value)}
    expected = np.full((1, 4, 16, 16), 2.0, dtype=np.float32)
    np.savez(tmp_path / coreml.CHECK, **{name: value.numpy() for name, value in args.items()}, out_sample=expected)
    (tmp_path / coreml.SCRIPT).write_text(SCRIPT.read_text())
    calls = []

    class Model:
        def __init__(self, path, compute_units):
            calls.append((Path(path).name, compute_units))

        def predict(self, inputs):
            assert inputs.keys() == args.keys()
            return {"out_sample": expected + 0.5}

    fake = SimpleNamespace(
        models=SimpleNamespace(MLModel=Model), ComputeUnit=SimpleNamespace(ALL="all", CPU_ONLY="cpu only")
    )
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setattr(sys, "argv", ["latency.py", "--units", "ALL", "--units", "CPU_ONLY", "--runs", "5"])
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(SystemExit, match="Core ML runs on macOS alone; this is Linux"):
        runpy.run_path(str(tmp_path / coreml.SCRIPT), run_name="__main__")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    runpy.run_path(str(tmp_path / coreml.SCRIPT), run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert calls == [("model.mlpackage", "all"), ("model.mlpackage", "cpu only")]
    assert [line["units"] for line in lines] == ["ALL", "CPU_ONLY"]
    assert [line["difference"] for line in lines] == [0.25, 0.25]
    low, high = lines[0]["quartiles_s"]
    assert 0 < low <= lines[0]["latency_s"] <= high
