"""A schedule as static graphs, one for each way in which a network is called, for ONNX Runtime and OpenVINO.

What a pass inherits goes into its graph, what later steps inherit comes out of it; keeping, forecasting and choosing
the graph stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from asdm.measure.backends import _onnx
from asdm.schedule.kept import Halves, Kept, Key
from asdm.schedule.legality import HalfPass, Place
from asdm.schedule.patches import keys_of, patched
from asdm.schedule.unet import ScheduledUNet
from asdm.utils import registry

NOW = 0  # a graph knows no step
RUNTIMES = ("onnxruntime", "openvino")
Run = Callable[[dict[str, Any]], Sequence[Any]]  # arrays by name → arrays


class Fed(Kept):
    """Values that are given to a pass, and those that it gives."""

    def __init__(self, given: Mapping[Key, Any]) -> None:
        super().__init__(1)
        self.given, self.made = dict(given), dict[Key, Any]()

    def get(self, key: Key, halves: Halves, now: int, how: HalfPass) -> Any:
        return self.given[key]

    def put(self, key: Key, step: int, halves: Halves, value: Any) -> None:
        self.made[key] = value


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
        self.names = (*self.call.names, *(f"inherited_{i}" for i in range(len(leaves))))
        self.made: dict[Key, TreeSpec] = {}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = list(tensors[len(self.call.tensors) :])
        given = {}
        for key, structure in self.given.items():
            given[key] = tree_unflatten([left.pop(0) for _ in range(structure.num_leaves)], structure)
        fed = Fed(given)
        with patched(self.unet, self.how, self.keep, fed, NOW, ()):
            output = self.call(*tensors[: len(self.call.tensors)])
        flat = {key: tree_flatten(value) for key, value in fed.made.items()}
        self.made = {key: structure for key, (_, structure) in flat.items()}
        return (output, *(leaf for leaves, _ in flat.values() for leaf in leaves))


def write(graph: PassGraph, folder: Path) -> Path:
    """The pass as `model.onnx` with its weights beside it."""
    graph.eval()
    with torch.inference_mode(False), torch.no_grad():
        outputs = graph(*graph.tensors)
        names = ["out_sample", *(f"kept_{i}" for i in range(len(outputs) - 1))]
        program = torch.onnx.export(
            graph, graph.tensors, dynamo=True, verbose=False, input_names=list(graph.names), output_names=names
        )
    assert program is not None
    program.save(folder / _onnx.MODEL, external_data=True)
    return folder / _onnx.MODEL


def open_runtime(name: str, model: Path, dtype: str = "fp32") -> Run:
    """A function that runs a graph in fp32, or in bf16 in OpenVINO.

    Raises ValueError for an unknown runtime, one that is not installed, and a dtype that it does not support.
    """
    if name not in RUNTIMES:
        raise ValueError(f"unknown runtime {name!r}; choose from {', '.join(RUNTIMES)}.")
    backend: Any = registry.load("asdm.measure.backends", name)
    if dtype not in ({*backend.DTYPES} - {"fp16"}):
        raise ValueError(f"{name} runs the graphs of a schedule in {', '.join(backend.DTYPES)}, not in {dtype}.")
    if name == "openvino":
        precision = {"fp32": "f32", "bf16": "bf16"}[dtype]
        config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
        compiled = backend.ov.compile_model(model, "CPU", config)
        return lambda feed: [value.copy() for value in compiled(feed).to_tuple()]
    session = backend.ort.InferenceSession(model, backend.options(), providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


@dataclass
class _Opened:
    graph: PassGraph
    run: Run


class GraphUNet(ScheduledUNet):
    """A scheduled UNet whose passes run as static graphs in a runtime; each is exported when it is first called.

    Shapes are those of the first image; the networks are in fp32, and OpenVINO may compute in `precision` bf16. The
    graphs are written into `folder`.
    """

    def __init__(self, *args: Any, runtime: str, folder: Path, precision: str = "fp32", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.runtime, self.folder, self.precision = runtime, folder, precision
        self.opened: dict[Any, _Opened] = {}

    def call_network(
        self, how: HalfPass, keep: frozenset[Place], halves: Halves, inputs: dict[str, Any]
    ) -> torch.Tensor:
        unet = self.networks[how.network]
        keeping = sorted((place for place in keep if place not in how.places and not place.whole), key=str)
        given = {
            key: self.kept.get(key, halves, self._step, how)
            for place in sorted(how.places, key=str) for _, key in keys_of(unet, how.network, place)
        }  # fmt: skip
        inputs = {name: value for name, value in inputs.items() if value is not None}
        inputs["timestep"] = torch.as_tensor(inputs["timestep"]).reshape(-1)[:1].float()
        call = (HalfPass(how.network, how.places), tuple(keeping), tuple(inputs["sample"].shape))
        if call not in self.opened:
            self.opened[call] = self._open(unet, how, keeping, inputs, given)
        opened = self.opened[call]
        tensors = [*_tensors(inputs), *(leaf for value in given.values() for leaf in tree_flatten(value)[0])]
        feed = {name: t.numpy() for name, t in zip(opened.graph.names, tensors, strict=True)}
        output, *leaves = (torch.from_numpy(value) for value in opened.run(feed))
        for key, value in _unflattened(opened.graph.made, leaves):
            self.kept.put(key, self._step, halves, value)
        return output

    def _open(
        self, unet: nn.Module, how: HalfPass, keeping: Sequence[Place], inputs: dict[str, Any], given: Mapping[Key, Any]
    ) -> _Opened:
        graph = PassGraph(unet, how, keeping, inputs, given)
        folder = self.folder / f"pass-{len(self.opened)}"
        folder.mkdir(parents=True, exist_ok=True)
        model = write(graph, folder)
        return _Opened(graph, open_runtime(self.runtime, model, self.precision))


def _tensors(inputs: dict[str, Any]) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, torch.Tensor)]


def _unflattened(made: Mapping[Key, TreeSpec], leaves: Sequence[torch.Tensor]) -> Iterator[tuple[Key, Any]]:
    left = list(leaves)
    for key, structure in made.items():
        yield key, tree_unflatten([left.pop(0) for _ in range(structure.num_leaves)], structure)
