"""ONNX Runtime on CUDA and TensorRT, on stubs of both: what they are given, and how their times find units."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from asdm.measure import backends
from asdm.measure.backends import _onnx, onnxruntime
from asdm.measure.clocks import clock_for
from asdm.unet import blocks
from tests.fake_cuda import FakeCuda, fake_cuda
from tests.tiny import SMALL, SMALLEST, make_unet, unet_args

KERNELS = {"conv_in": 2, "mid_block.resnets.0": 3, "": 1}  # ms of a kernel in each; the last one is in no part


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as fake:
        yield fake


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nn.Module:
    """A small UNet whose graph is not exported."""
    graph = tmp_path / "graph" / _onnx.MODEL
    graph.parent.mkdir()
    graph.write_bytes(b"graph")
    exported: list[bool] = []
    monkeypatch.setattr(_onnx, "cached", lambda unet, inputs, keep_fp16: exported.append(keep_fp16) or graph)
    unet = make_unet(**SMALL)
    unet.exported = exported
    return unet


# ---------------------------------------------------------------------------------------------- ONNX Runtime


class OrtSession:
    """What onnxruntime.InferenceSession is on CUDA: a call takes the kernels' milliseconds and writes the output."""

    cuda: FakeCuda
    has_kernels = True
    opened: list["OrtSession"]

    def __init__(self, graph: Path, options: Any, providers: list[Any]) -> None:
        self.options, self.providers, self.bound, self.runs = options, providers, {}, 0
        self.opened.append(self)

    def io_binding(self) -> Any:
        return SimpleNamespace(bind_input=self.bind, bind_output=self.bind)

    def bind(self, name: str, *place: Any) -> None:
        self.bound[name] = place

    def run_with_iobinding(self, binding: Any) -> None:
        self.runs += 1
        self.cuda.work(sum(KERNELS.values()))

    def end_profiling(self) -> str:
        events: list[dict[str, Any]] = []
        for run in range(self.runs):
            start = run * 10_000
            events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 8_000})
            for i, (path, ms) in enumerate(KERNELS.items()):
                node = f"{path}|{i}_Conv_kernel_time"
                events.append({"cat": "Node", "name": node, "ts": start + i, "dur": 1})
                kernel = {"cat": "Kernel", "name": "sm90_xmma", "ts": start + 100 * i, "dur": ms * 1000}
                events += [kernel | {"args": {"parent_name": node}}] if self.has_kernels else []
        path = Path(self.options.profile_file_prefix).with_suffix(".json")
        path.write_text(json.dumps(events))
        return str(path)


@pytest.fixture
def ort(cuda: FakeCuda, small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> type[OrtSession]:
    monkeypatch.setattr(OrtSession, "cuda", cuda, raising=False)
    monkeypatch.setattr(OrtSession, "opened", [], raising=False)
    monkeypatch.setattr(onnxruntime.ort, "InferenceSession", OrtSession)
    return OrtSession


def test_onnxruntime_reads_and_writes_torchs_tensors_on_the_card(
    cuda: FakeCuda, small: nn.Module, ort: type[OrtSession]
) -> None:
    inputs = unet_args()
    with torch.inference_mode():
        session = onnxruntime.open_session(small, inputs, list(blocks.iter_parts(small)), clock_for("cuda:1"))
        assert session.run() == pytest.approx(6e-3)
        assert session.output().shape == (1, 4, 16, 16)
    (opened,) = ort.opened
    stream = str(session.stream.cuda_stream)
    options = {"device_id": 1, "user_compute_stream": stream, "use_tf32": 0}
    assert opened.providers == [(onnxruntime.CUDA, options)]
    assert set(opened.bound) == {"sample", "timestep", "encoder_hidden_states", _onnx.OUTPUT}
    device, index, kind, shape, address = opened.bound["sample"]
    assert (device, index, kind, shape) == ("cuda", 1, np.float32, (1, 4, 16, 16))
    assert address == inputs["sample"].data_ptr()
    assert set(cuda.recorded) == {1}
    assert small.exported == [False]


def test_kernels_are_summed_by_the_unit_that_launched_them(small: nn.Module, ort: type[OrtSession]) -> None:
    with torch.inference_mode():
        session = onnxruntime.open_session(small, unet_args(), list(blocks.iter_parts(small)), clock_for("cuda"))
        whole, parts = session.run_parts()
    assert whole == pytest.approx(6e-3)
    scale = 6 / 8  # a profiled run takes 8 ms
    assert {fqn: s for fqn, s in parts.items() if s} == {
        "conv_in": pytest.approx(2e-3 * scale), "mid_block.resnets.0": pytest.approx(3e-3 * scale)
    }  # fmt: skip
    assert session.attribution.mapped == [pytest.approx(5 / 6)]


def test_a_profile_without_kernels_is_refused(
    small: nn.Module, ort: type[OrtSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "has_kernels", False)
    session = onnxruntime.open_session(small, unet_args(), [], clock_for("cuda"))
    with pytest.raises(ValueError, match="does not tell how long its CUDA kernels take; compare whole UNets with"):
        session.run_parts()


def test_onnxruntime_says_what_it_lacks_for_a_gpu() -> None:
    words = r"onnxruntime on cuda:0 needs its CUDAExecutionProvider, and this build has .*; install onnxruntime-gpu"
    with pytest.raises(ValueError, match=words):
        backends.load("onnxruntime", "fp16", "cuda:0")
    with pytest.raises(ValueError, match=r"onnxruntime does not support the dtype fp16 here; choose from fp32\."):
        backends.load("onnxruntime", "fp16", "cpu")


def test_an_fp16_graph_stays_fp16(tmp_path: Path) -> None:
    unet = make_unet(**SMALLEST).half()
    inputs = {
        k: v.half() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in unet_args().items()
    }
    graph = onnx.load(_onnx.export(unet, inputs, tmp_path, keep_fp16=True), load_external_data=False).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds["sample"] == kinds[_onnx.OUTPUT] == onnx.TensorProto.FLOAT16
    weights = {weight.data_type for weight in graph.initializer if len(weight.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16}


# ---------------------------------------------------------------------------------------------- TensorRT

# Name of a layer → its origin, and its ms. The third came from two units; the last one from none.
LAYERS = {
    "conv": ("[ONNX Layer: conv_in|0_Conv]", 2.0),
    "fused": ("[ONNX Layer: mid_block.resnets.0.norm1|4_GN]\x1e[ONNX Layer: mid_block.resnets.0.conv1|5_Conv]", 3.0),
    "ForeignNode": ("[ONNX Layer: conv_in|1_X]\x1e[ONNX Layer: conv_norm_out|9_GN]", 4.0),
    "reformat": ("", 1.0),
}


class FakeTensorRt(ModuleType):
    """tensorrt, which reads any graph, and whose calls take what its layers take."""

    __version__ = "11.4.0"

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__("tensorrt")
        self.addresses: list[dict[str, int]] = []
        self.streams: list[int] = []
        self.config = SimpleNamespace(cleared=[], clear_flag=lambda flag: self.config.cleared.append(flag))
        self.reads, self.builds = True, 0
        trt = self

        class IProfiler:
            def __init__(self) -> None: ...

        class Context:
            profiler: Any = None

            def __init__(self) -> None:
                self.addresses: dict[str, int] = {}
                trt.addresses.append(self.addresses)

            def set_tensor_address(self, name: str, address: int) -> None:
                self.addresses[name] = address

            def execute_async_v3(self, stream: int) -> None:
                trt.streams.append(stream)
                cuda.work(sum(ms for _, ms in LAYERS.values()))
                if self.profiler:
                    for name, (_, ms) in LAYERS.items():
                        self.profiler.report_layer_time(name, ms)

        layers = [{"Name": name, "Metadata": origin} for name, (origin, _) in LAYERS.items()]
        inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers}))
        engine = SimpleNamespace(create_execution_context=Context, create_engine_inspector=lambda: inspector)

        def build_engine(network: Any, config: Any) -> bytes:
            trt.builds += 1
            return b"engine"

        parser = SimpleNamespace(
            parse_from_file=lambda path: self.reads,
            get_error=lambda i: SimpleNamespace(desc=lambda: "no such operator"),
        )
        values = {
            "IProfiler": IProfiler, "Logger": type("Logger", (), {"ERROR": 1, "__init__": lambda *_: None}),
            "Runtime": lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
            "Builder": lambda logger: SimpleNamespace(
                create_network=lambda flags: flags, create_builder_config=lambda: self.config,
                build_serialized_network=build_engine,
            ),
            "OnnxParser": lambda network, logger: parser,
            "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
            "ProfilingVerbosity": SimpleNamespace(DETAILED="detailed"), "BuilderFlag": SimpleNamespace(TF32="tf32"),
            "LayerInformationFormat": SimpleNamespace(JSON="json"),
        }  # fmt: skip
        for name, value in values.items():
            setattr(self, name, value)


@pytest.fixture
def trt(cuda: FakeCuda, small: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeTensorRt]:
    name = "asdm.measure.backends.tensorrt"
    fake = FakeTensorRt(cuda)
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield fake
    sys.modules.pop(name, None)
    backends.__dict__.pop("tensorrt", None)


def test_tensorrts_layers_find_their_units(small: nn.Module, trt: FakeTensorRt, cuda: FakeCuda) -> None:
    backend = backends.load("tensorrt", "fp16", "cuda:1")
    inputs = unet_args()
    with torch.inference_mode():
        session = backend.open_session(small, inputs, list(blocks.iter_parts(small)), clock_for("cuda:1"))
        whole, parts = session.run_parts()
        session.run_parts()
        assert session.output().shape == (1, 4, 16, 16)
    assert whole == pytest.approx(10e-3)
    found = {fqn: seconds for fqn, seconds in parts.items() if seconds}
    assert found.pop("conv_in") == pytest.approx(2e-3)
    assert found.pop("mid_block.resnets.0") == pytest.approx(3e-3), "both of its nodes are the unit's"
    assert not found, "a layer of two units is in neither, and what follows it is not either"
    assert session.attribution.mapped == [pytest.approx(5 / 10)] * 2
    assert len(trt.addresses) == 2, "bare calls, and profiled ones"
    assert trt.addresses[0]["sample"] == inputs["sample"].data_ptr()
    assert set(trt.streams) == {session.stream.cuda_stream}


def test_an_engine_is_built_once_in_the_graphs_own_types(small: nn.Module, trt: FakeTensorRt) -> None:
    backend = backends.load("tensorrt", "fp32", "cuda")
    with torch.inference_mode():
        for _ in range(2):
            backend.open_session(small, unet_args(), (), clock_for("cuda"))
    assert trt.builds == 1
    assert (trt.config.profiling_verbosity, trt.config.cleared) == ("detailed", ["tf32"])


def test_a_graph_that_tensorrt_cannot_read_is_told_in_one_sentence(small: nn.Module, trt: FakeTensorRt) -> None:
    trt.reads = False
    with pytest.raises(ValueError, match=r"TensorRT cannot read the graph of this UNet: no such operator\."):
        backends.load("tensorrt", "fp32", "cuda").open_session(small, unet_args(), (), clock_for("cuda"))


def test_tensorrt_is_an_extra_of_nvidias() -> None:
    with pytest.raises(
        ValueError, match=r"'tensorrt' of backends needs the package 'tensorrt', which is not installed"
    ):
        importlib.import_module("asdm.measure.backends").load("tensorrt", "fp16", "cuda")
