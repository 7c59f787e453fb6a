"""ONNX Runtime on the CPU in fp32, and on a GPU of NVIDIA's in fp32 or fp16 (package onnxruntime-gpu).

Part times come from profiled runs in a session of its own, a few at a time: node times are summed by the part that
each node belongs to, as shares of the profiled run, and the shares are scaled to a bare run, since profiling slows a
run. Which part a node belongs to stands in its name (see `_onnx`); the optimiser names what it fuses after one of the
nodes or tensors that it fused. What it inserts without such a name changes a layout for a neighbour: what follows a
convolution or a product belongs to the node that ran before it, anything else to the node that ran after it.

On a GPU, inputs and output are torch's own tensors (IOBinding), the session runs on a stream of torch's, where events
time it, and a profile has the kernels of each node if ONNX Runtime was built with CUDA profiling.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import nn

from asdm.measure.backends import _onnx
from asdm.measure.clocks import Clock, EventClock, timed
from asdm.measure.device import is_gpu
from asdm.unet.blocks import Part

NEEDS_WEIGHTS, HOOKED = True, False
WEIGHT_COPIES = 1
ACTIVATION_COPIES = 11  # as measured on SD 1.5 at batch 1 and 2: its arena, and attention that is written out
DTYPES, DEVICES = ("fp32", "fp16"), ("cpu", "cuda")
DTYPES_ON_A_CPU = ("fp32",)
CUDA = "CUDAExecutionProvider"
PROFILED_RUNS = 5
AFTER_ITS_NODE = ("ReorderOutput", "Transpose", "gemm_output_reshape")  # inserted by ONNX Runtime; others go before


def check(dtype: str, device: str) -> None:
    """Raises ValueError for a GPU that this build has no provider for."""
    if is_gpu(device) and CUDA not in ort.get_available_providers():
        raise ValueError(
            f"onnxruntime on {device} needs its {CUDA}, and this build has {', '.join(ort.get_available_providers())}; "
            "install onnxruntime-gpu in the place of onnxruntime."
        )


class ProfiledSession:
    """Times of parts from profiled runs of a session of their own, which `_open` opens and `_read` reads."""

    clock: Clock
    scopes: _onnx.Scopes

    def __init__(self) -> None:
        self.session, self.call = self._open(options())
        self.profiled: list[tuple[float, list[_onnx.Node]]] = []

    def _open(self, session_options: ort.SessionOptions) -> tuple[ort.InferenceSession, Callable[[], Any]]:
        """A session, and one run of it."""
        raise NotImplementedError

    def _read(self, events: Sequence[dict[str, Any]]) -> list[tuple[float, list[_onnx.Node]]]:
        """Seconds and nodes of every run in a profile."""
        raise NotImplementedError

    def run(self) -> float:
        return timed(self.call, self.clock)

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
            session, call = self._open(profiling)
            for _ in range(1 + PROFILED_RUNS):
                call()
            return self._read(json.loads(Path(session.end_profiling()).read_text()))[1:]


class OnnxRuntimeSession(ProfiledSession, _onnx.GraphSession):
    """A session with as many threads as torch has; the graph is exported unless it is in the cache."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        _onnx.GraphSession.__init__(self, unet, inputs, parts, clock)
        ProfiledSession.__init__(self)

    def _open(self, session_options: ort.SessionOptions) -> tuple[ort.InferenceSession, Callable[[], Any]]:
        session = ort.InferenceSession(self.graph, session_options, providers=["CPUExecutionProvider"])
        return session, partial(session.run, None, self.feed)

    def _read(self, events: Sequence[dict[str, Any]]) -> list[tuple[float, list[_onnx.Node]]]:
        return list(read_profile(events))

    def output(self) -> torch.Tensor:
        return torch.from_numpy(self.call()[0])


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


class CudaSession(ProfiledSession):
    """A session on a GPU that reads and writes torch's tensors, on a stream of torch's."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: EventClock) -> None:
        self.clock, self.scopes = clock, _onnx.Scopes(unet, parts)
        self.attribution = self.scopes.attribution
        call = _onnx.Call(unet, inputs)
        self.graph = _onnx.cached(unet, inputs, keep_fp16=next(unet.parameters()).dtype == torch.float16)
        self.tensors = dict(zip(call.names, (tensor.contiguous() for tensor in call.tensors), strict=True))
        self.out = torch.empty_like(call(*call.tensors)).contiguous()
        self.index = torch.device(clock.device).index or 0
        self.stream = torch.cuda.Stream(clock.device)
        super().__init__()

    def _open(self, session_options: ort.SessionOptions) -> tuple[ort.InferenceSession, Callable[[], Any]]:
        """A session, and one run of it on the tensors that it is bound to."""
        options = {"device_id": self.index, "user_compute_stream": str(self.stream.cuda_stream), "use_tf32": 0}
        provider = (CUDA, options)  # by default it computes fp32 in TF32
        session = ort.InferenceSession(self.graph, session_options, providers=[provider])
        binding = session.io_binding()
        for name, tensor in self.tensors.items():
            binding.bind_input(name, *self._place(tensor))
        binding.bind_output(_onnx.OUTPUT, *self._place(self.out))
        return session, partial(session.run_with_iobinding, binding)

    def _read(self, events: Sequence[dict[str, Any]]) -> list[tuple[float, list[_onnx.Node]]]:
        return read_kernels(events)

    def _place(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        """Device, index, type, shape and address, as a binding takes them."""
        numpy_type = torch.empty(0, dtype=tensor.dtype).numpy().dtype
        return "cuda", self.index, numpy_type, tuple(tensor.shape), tensor.data_ptr()

    def run(self) -> float:
        with torch.cuda.stream(self.stream):
            return super().run()

    def output(self) -> torch.Tensor:
        self.run()
        return self.out.clone()


def read_kernels(events: Sequence[dict[str, Any]]) -> list[tuple[float, list[_onnx.Node]]]:
    """Seconds of every run in a profile on a GPU, with its kernels by the nodes that launched them.

    Raises ValueError where the profile has no kernels: a node's own event ends when its kernels are launched.
    """
    kernels = [event for event in events if event.get("cat") == "Kernel"]
    if not kernels:
        raise ValueError(
            "this build of ONNX Runtime does not tell how long its CUDA kernels take; compare whole UNets with "
            "asdm bench, or profile in cudagraph or tensorrt."
        )
    runs = [event for event in events if event["name"] == "model_run"]
    return [
        (
            run["dur"] / 1e6,
            [
                _onnx.Node(event["args"].get("parent_name", "").removesuffix("_kernel_time"), event["dur"] / 1e6)
                for event in sorted(kernels, key=lambda event: event["ts"])
                if run["ts"] <= event["ts"] <= run["ts"] + run["dur"]
            ],
        )
        for run in sorted(runs, key=lambda run: run["ts"])
    ]


def open_session(
    unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock
) -> OnnxRuntimeSession | CudaSession:
    """A session where the clock is: on a GPU, or on the CPU."""
    if isinstance(clock, EventClock):
        return CudaSession(unet, inputs, parts, clock)
    return OnnxRuntimeSession(unet, inputs, parts, clock)


def evaluate(graph: Path, feed: dict[str, Any]) -> Any:
    """The output of one call of a graph, as an array."""
    return ort.InferenceSession(graph, options(), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def keep(graph: Path, metadata: Mapping[str, str]) -> None:
    """Nothing to do: an exported graph is what ONNX Runtime loads."""
