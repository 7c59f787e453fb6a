"""One pass of a schedule as a graph: what it inherits goes in, what later steps inherit comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from asdm.measure.backends import _onnx
from asdm.schedule.kept import Halves, Kept, Key
from asdm.schedule.legality import HalfPass, Place
from asdm.schedule.patches import patched
from asdm.utils import console, registry
from asdm.utils.disk import reason

NOW = 0  # a graph knows no step
INHERITED = "inherited_"  # an input's name before its number
RUNTIMES = ("onnxruntime", "openvino")
Run = Callable[[dict[str, Any]], Sequence[Any]]  # arrays by name → arrays


class Fed(Kept):
    """Values that are given to a pass, and those that it gives."""

    def __init__(self, given: Mapping[Key, Any]) -> None:
        super().__init__(1)
        self.given, self.kept = dict(given), dict[Key, Any]()

    def get(self, key: Key, halves: Halves, now: int, how: HalfPass) -> Any:
        return self.given[key]

    def put(self, key: Key, step: int, halves: Halves, value: Any) -> None:
        self.kept[key] = value


class PassGraph(nn.Module):
    """One pass as a function of tensors: the UNet's inputs and what is inherited → the output and what is kept."""

    def __init__(
        self, unet: nn.Module, how: HalfPass, keep: Sequence[Place], inputs: dict[str, Any], given: Mapping[Key, Any]
    ) -> None:
        super().__init__()
        self.unet, self.how, self.keep = unet, how, tuple(keep)
        self.given = {key: tree_flatten(value)[1] for key, value in given.items()}
        self.call = _onnx.Call(unet, inputs)
        leaves = [leaf for value in given.values() for leaf in tree_flatten(value)[0]]
        self.tensors = (*self.call.tensors, *leaves)
        self.names = (*self.call.names, *(f"{INHERITED}{i}" for i in range(len(leaves))))
        self.kept: dict[Key, TreeSpec] = {}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = list(tensors[len(self.call.tensors) :])
        given = {}
        for key, structure in self.given.items():
            given[key] = tree_unflatten([left.pop(0) for _ in range(structure.num_leaves)], structure)
        fed = Fed(given)
        with patched(self.unet, self.how, self.keep, fed, NOW, ()):
            output = self.call(*tensors[: len(self.call.tensors)])
        flat = {key: tree_flatten(value) for key, value in fed.kept.items()}
        self.kept = {key: structure for key, (_, structure) in flat.items()}
        return (output, *(leaf for leaves, _ in flat.values() for leaf in leaves))


def write(graph: PassGraph, folder: Path, metadata: Mapping[str, str]) -> tuple[Path, tuple[torch.Tensor, ...]]:
    """The pass as `model.onnx` with its weights beside it, and PyTorch's outputs; raises ValueError where it fails."""
    graph.eval()
    with _onnx.quiet(), _onnx.frozen(graph), torch.inference_mode(False), torch.no_grad():
        outputs = graph(*graph.tensors)
        names = [_onnx.OUTPUT, *(f"kept_{i}" for i in range(len(outputs) - 1))]
        try:
            program = torch.onnx.export(
                graph, graph.tensors, dynamo=True, verbose=False, input_names=list(graph.names), output_names=names
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(f"a pass of {graph.how.network} has no graph: {reason(error)}") from None
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(folder / _onnx.MODEL, external_data=True)
    return folder / _onnx.MODEL, outputs


def open_runtime(name: str, model: Path, dtype: str = "fp32") -> Run:
    """A function that runs a graph in fp32, or in bf16 in OpenVINO.

    Raises ValueError for an unknown runtime, one that is not installed, and a dtype that it does not support.
    """
    if name not in RUNTIMES:
        raise ValueError(f"unknown runtime {name!r}; choose from {', '.join(RUNTIMES)}.")
    backend: Any = registry.load("asdm.measure.backends", name)
    dtypes = [choice for choice in backend.DTYPES if choice != "fp16"]
    if dtype not in dtypes:
        raise ValueError(f"{name} runs the graphs of a schedule in {', '.join(dtypes)}, not in {dtype}.")
    try:
        return _opened(name, backend, model, dtype)
    except Exception as error:  # the runtimes have errors of their own
        raise ValueError(f"{name} cannot open {model}: {console.first_line(error)}.") from None


def _opened(name: str, backend: Any, model: Path, dtype: str) -> Run:
    if name == "openvino":
        precision = {"fp32": "f32", "bf16": "bf16"}[dtype]
        config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
        compiled = backend.ov.compile_model(model, "CPU", config)
        return lambda feed: [value.copy() for value in compiled(feed).to_tuple()]
    session = backend.ort.InferenceSession(model, backend.options(), providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)
