"""TensorRT on a GPU of NVIDIA's, in fp32 or fp16, from the same graph as ONNX Runtime (package tensorrt).

Part times come from a second context with a profiler (`IProfiler`), which tells the time of every layer of the engine.
Which nodes of the graph a layer came from stands in the engine's own description (`Metadata`); where they are of
several parts, which happens where TensorRT compiles a stretch of the graph as one, the layer's time lies in none.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorrt as trt
import torch
from torch import nn

from asdm.measure.backends import _onnx
from asdm.measure.clocks import Clock, timed
from asdm.unet.blocks import Part

NEEDS_WEIGHTS, HOOKED = True, False
WEIGHT_COPIES, ACTIVATION_COPIES = 1, 2
DTYPES, DEVICES = ("fp32", "fp16"), ("cuda",)
ENGINE = "model.engine"
SOURCE = re.compile(r"\[ONNX Layer: (.+?)\]")


class LayerTimes(trt.IProfiler):
    """Seconds of every layer of the last call, in the order they ran."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.layers: list[tuple[str, float]] = []

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        self.layers.append((layer_name, ms / 1e3))


class TensorRtSession:
    """An engine, built unless it is in the cache, that reads and writes torch's tensors on a stream of torch's."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        self.clock, self.scopes = clock, _onnx.Scopes(unet, parts)
        self.attribution = self.scopes.attribution
        self.device = next(unet.parameters()).device
        call = _onnx.Call(unet, inputs)
        graph = _onnx.cached(unet, inputs, keep_fp16=next(unet.parameters()).dtype == torch.float16)
        self.tensors = dict(zip(call.names, (tensor.contiguous() for tensor in call.tensors), strict=True))
        self.tensors[_onnx.OUTPUT] = torch.empty_like(call(*call.tensors)).contiguous()
        self.stream = torch.cuda.Stream(self.device)
        # An engine needs its runtime and its logger as long as it lives.
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.runtime = trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(engine_file(graph, self.logger, self.device).read_bytes())
        self.context = self._context()

    def _context(self) -> Any:
        context = self.engine.create_execution_context()
        for name, tensor in self.tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return context

    def _timed(self, context: Any) -> float:
        with torch.cuda.stream(self.stream):
            return timed(lambda: context.execute_async_v3(self.stream.cuda_stream), self.clock)

    def run(self) -> float:
        return self._timed(self.context)

    def output(self) -> torch.Tensor:
        self.run()
        return self.tensors[_onnx.OUTPUT].clone()

    @cached_property
    def _profiled(self) -> tuple[Any, LayerTimes]:
        context, times = self._context(), LayerTimes()
        context.profiler = times
        return context, times

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The description of every layer's origin, by its name."""
        inspector = self.engine.create_engine_inspector()
        layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
        return {layer["Name"]: layer.get("Metadata", "") for layer in layers}

    def run_parts(self) -> tuple[float, dict[str, float]]:
        context, times = self._profiled
        times.layers.clear()
        whole_s = self._timed(context)
        nodes = [_onnx.Node(self.node_of(name), seconds) for name, seconds in times.layers]
        bare_s = self.run()
        return bare_s, self.scopes.times(nodes, (), whole_s, bare_s)

    def node_of(self, layer: str) -> str:
        """A node of the graph in the layer's place: one of its own if all are of one part, else one of no part.

        A layer that came from no node, such as a change of format, keeps its name, which has no path.
        """
        nodes = SOURCE.findall(self._sources.get(layer, ""))
        if not nodes:
            return layer.replace(_onnx.SEPARATOR, " ")
        parts = {self.scopes.part_of(node) for node in nodes}
        return nodes[0] if len(parts) == 1 else f"{_onnx.SEPARATOR}{layer}"


def engine_file(graph: Path, logger: Any, device: torch.device) -> Path:
    """The engine of a graph for this card and this TensorRT, built in minutes unless it is in the cache."""
    card = hashlib.sha256(torch.cuda.get_device_name(device).encode()).hexdigest()[:8]
    key = f"{graph.parent.name}-tensorrt-{trt.__version__}-{card}"
    needed_bytes = sum(file.stat().st_size for file in graph.parent.iterdir())
    folder = _onnx.get_or_make(
        key, needed_bytes, lambda at: (at / ENGINE).write_bytes(build(graph, logger)), source=graph.parent
    )
    return folder / ENGINE


def build(graph: Path, logger: Any) -> bytes:
    """The engine of a graph in the graph's own types; raises ValueError with TensorRT's reason where it cannot be."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise ValueError(f"TensorRT cannot read the graph of this UNet: {parser.get_error(0).desc()}.")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32 everywhere here
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("TensorRT cannot build an engine of this UNet on this card; choose another backend.")
    return bytes(engine)


open_session = TensorRtSession
