"""ONNX Runtime on the CPU, in fp32.

Part times come from profiled runs in a session of its own, a few at a time: node times are summed by the part that
each node belongs to, as shares of the profiled run, and the shares are scaled to a bare run, since profiling slows a
run. Which part a node belongs to stands in its name (see `_onnx`); the optimiser names what it fuses after one of the
nodes or tensors that it fused. What it inserts without such a name changes a layout for a neighbour: what follows a
convolution or a product belongs to the node that ran before it, anything else to the node that ran after it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import nn

from asdm.measure.backends import _onnx
from asdm.measure.clocks import Clock, timed
from asdm.unet.blocks import Part

NEEDS_WEIGHTS, HOOKED = True, False
WEIGHT_COPIES = 1
ACTIVATION_COPIES = 11  # as measured on SD 1.5 at batch 1 and 2: its arena, and attention that is written out
DTYPES, DEVICES = ("fp32",), ("cpu",)
PROFILED_RUNS = 5
AFTER_ITS_NODE = ("ReorderOutput", "Transpose", "gemm_output_reshape")  # inserted by ONNX Runtime; others go before


class OnnxRuntimeSession(_onnx.GraphSession):
    """A session with as many threads as torch has; the graph is exported unless it is in the cache."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        super().__init__(unet, inputs, parts, clock)
        self.session = ort.InferenceSession(self.graph, options(), providers=["CPUExecutionProvider"])
        self.profiled: list[tuple[float, list[_onnx.Node]]] = []

    def run(self) -> float:
        return timed(lambda: self.session.run(None, self.feed), self.clock)

    def output(self) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, self.feed)[0])

    def run_parts(self) -> tuple[float, dict[str, float]]:
        self.profiled = self.profiled or self._profile()
        whole_s, nodes = self.profiled.pop()
        bare_s = self.run()
        return bare_s, self.scopes.times(nodes, AFTER_ITS_NODE, whole_s, bare_s)

    def _profile(self) -> list[tuple[float, list[_onnx.Node]]]:
        """A few profiled runs in a session of their own, since Python can neither restart nor split a profile."""
        with tempfile.TemporaryDirectory() as folder:
            profiling = options()
            profiling.enable_profiling = True
            profiling.profile_file_prefix = str(Path(folder) / "runs")
            session = ort.InferenceSession(self.graph, profiling, providers=["CPUExecutionProvider"])
            for _ in range(1 + PROFILED_RUNS):
                session.run(None, self.feed)
            return list(read_profile(json.loads(Path(session.end_profiling()).read_text())))[1:]


def options() -> ort.SessionOptions:
    """Session options with torch's number of threads and flushed denormals."""
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = torch.get_num_threads()
    session_options.log_severity_level = 3
    session_options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session_options.add_session_config_entry("session.force_spinning_stop", "1")  # or they spin into the next run
    return session_options


def read_profile(events: Sequence[dict[str, Any]]) -> Iterator[tuple[float, list[_onnx.Node]]]:
    """Seconds of every run in a profile, with its nodes in the order they ran."""
    nodes: list[_onnx.Node] = []
    for event in sorted(events, key=lambda event: event["ts"] + event["dur"]):
        if event["name"].endswith("_kernel_time"):
            nodes.append(_onnx.Node(event["name"].removesuffix("_kernel_time"), event["dur"] / 1e6))
        elif event["name"] == "model_run":
            yield event["dur"] / 1e6, nodes
            nodes = []


open_session = OnnxRuntimeSession


def evaluate(graph: Path, feed: dict[str, Any]) -> Any:
    """The output of one call of a graph, as an array."""
    return ort.InferenceSession(graph, options(), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def keep(graph: Path) -> None:
    """Nothing to do: an exported graph is what ONNX Runtime loads."""
