"""OpenVINO on the CPU, in fp32, or in bf16 on an fp32 graph (`INFERENCE_PRECISION_HINT`) where the CPU has it.

Part times come from the time of every node, which OpenVINO counts (`PERF_COUNT`) in each call of a session with parts,
bare or not: it is a time stamp a node, and a second copy of the weights for calls without it is not worth its memory.
Which part a node belongs to stands in its name (see `_onnx`): OpenVINO names what it fuses after the last node that it
fused, and a change of layout after the node before it. The few nodes without a path in their name (a normalisation is
taken from inside its operator) belong to the node after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from torch import nn

from asdm.measure.backends import _onnx
from asdm.measure.clocks import Clock, timed
from asdm.unet.blocks import Part

NEEDS_WEIGHTS, HOOKED = True, False
WEIGHT_COPIES, ACTIVATION_COPIES = 1, 1
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # or the hint is passed over
DTYPES = ("fp32", "bf16") if HAS_BF16 else ("fp32",)
DEVICES = ("cpu",)

IR = "openvino_model.xml"
PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoSession(_onnx.GraphSession):
    """A compiled graph with as many threads as torch has; the graph is exported unless it is in the cache."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        super().__init__(unet, inputs, parts, clock)
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": PRECISION[next(unet.parameters()).dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": bool(parts),
        }
        self.request = ov.compile_model(self.graph, "CPU", config).create_infer_request()
        self.calls = 0

    def _infer(self) -> Any:
        self.calls += 1
        return self.request.infer(self.feed)

    def run(self) -> float:
        return timed(self._infer, self.clock)

    def output(self) -> torch.Tensor:
        return torch.from_numpy(self._infer()[0].copy())

    def run_parts(self) -> tuple[float, dict[str, float]]:
        before = self._node_seconds()
        whole_s = self.run()
        # A mean is cut to whole microseconds, so what nothing ran for may come out a little below 0.
        nodes = [_onnx.Node(name, max(s - before.get(name, 0.0), 0.0)) for name, s in self._node_seconds().items()]
        return whole_s, self.scopes.times(nodes, (), whole_s, whole_s)

    def _node_seconds(self) -> dict[str, float]:
        """Seconds of every node in all calls so far, of which OpenVINO gives the mean."""
        if not self.calls:
            return {}
        return {n.node_name: n.real_time.total_seconds() * self.calls for n in self.request.get_profiling_info()}


open_session = OpenVinoSession


def evaluate(graph: Path, feed: dict[str, Any]) -> Any:
    """The output of one call of a graph in fp32, as an array."""
    return ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feed)[0].copy()


def keep(graph: Path, metadata: Mapping[str, str]) -> None:
    """Convert an exported graph to OpenVINO's own format in fp32 with `metadata` in it, and delete the original."""
    model = ov.Core().read_model(graph)
    for name, value in metadata.items():
        model.set_rt_info(value, name.split("."))
    ov.save_model(model, graph.with_name(IR), compress_to_fp16=False)
    del model  # it maps the weights' file
    for file in graph.parent.glob(f"{graph.name}*"):
        file.unlink()
