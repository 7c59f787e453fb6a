"""A scheduled UNet whose passes run as static graphs; keeping, forecasting and choosing the graph stay outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from asdm.measure import backends
from asdm.measure.backends import _onnx
from asdm.records.build import GraphValue, PassGraphFile
from asdm.schedule.graphs.passes import INHERITED, RUNTIMES, PassGraph, Run, open_runtime, write
from asdm.schedule.kept import Halves, Key
from asdm.schedule.legality import HalfPass, Place
from asdm.schedule.patches import keys_of
from asdm.schedule.unet import ScheduledUNet

TOLERANCE = 1e-3  # of the largest value of each output


@dataclass
class _Opened:
    file: PassGraphFile
    kept: dict[Key, TreeSpec]
    run: Run


class GraphUNet(ScheduledUNet):
    """A scheduled UNet whose passes run as static graphs in a runtime; each is exported when it is first called.

    Shapes are those of the first image; the networks are in fp32, and OpenVINO may compute in `precision` bf16. The
    graphs are written into `folder`, with `metadata` in them, and compared with PyTorch where they run in fp32. With
    `files`, the folder has been written before: no other graphs are made, and the networks may be without weights.
    """

    def __init__(
        self,
        *args: Any,
        runtime: str,
        folder: Path,
        precision: str = "fp32",
        metadata: Mapping[str, str] | None = None,
        files: Sequence[PassGraphFile] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if runtime not in RUNTIMES:
            raise ValueError(f"unknown runtime {runtime!r}; choose from {', '.join(RUNTIMES)}.")
        self.runtime, self.folder, self.precision = runtime, folder, precision
        self.metadata, self.files = metadata or {}, files
        self.opened: dict[Any, _Opened] = {}
        self.watch: Callable[[PassGraphFile, dict[str, Any]], None] | None = None  # gets each graph's feed

    def call_network(
        self, how: HalfPass, keep: frozenset[Place], halves: Halves, inputs: dict[str, Any]
    ) -> torch.Tensor:
        """As a scheduled UNet's; what any step keeps is kept at all, so that one graph does for every step."""
        unet = self.networks[how.network]
        ever = self.resolved.steps[0].keep.get(how.network, frozenset())
        keeping = sorted((place for place in ever if place not in how.places and not place.whole), key=str)
        given = {
            key: self.kept.get(key, halves, self._step, how)
            for place in sorted(how.places, key=str) for _, key in keys_of(unet, how.network, place)
        }  # fmt: skip
        inputs = {name: value for name, value in inputs.items() if value is not None}
        inputs["timestep"] = torch.as_tensor(inputs["timestep"]).reshape(-1)[:1].float()
        call = (how.network, frozenset(place for _, place, _ in given), tuple(inputs["sample"].shape))
        if call not in self.opened:
            if self.files is None:
                self.opened[call] = self._export(unet, how, keeping, inputs, given)
            else:
                self.opened[call] = self._open(call)
        opened = self.opened[call]
        own, leaves = _onnx.Call(unet, inputs), [leaf for value in given.values() for leaf in tree_flatten(value)[0]]
        tensors = dict(zip(own.names, own.tensors, strict=True)) | {f"{INHERITED}{i}": t for i, t in enumerate(leaves)}
        if missing := tensors.keys() ^ {*opened.file.inputs}:
            raise ValueError(f"the graphs in {self.folder} were made without {', '.join(sorted(missing))}.")
        feed = {name: t.contiguous().numpy() for name, t in tensors.items()}
        if self.watch:
            self.watch(opened.file, feed)
        output, *leaves = (torch.from_numpy(value) for value in opened.run(feed))
        for key, structure in opened.kept.items():
            value, leaves = leaves[: structure.num_leaves], leaves[structure.num_leaves :]
            self.kept.put(key, self._step, halves, tree_unflatten(value, structure))
        return output

    def _export(
        self, unet: nn.Module, how: HalfPass, keeping: Sequence[Place], inputs: dict[str, Any], given: Mapping[Key, Any]
    ) -> _Opened:
        graph = PassGraph(unet, how, keeping, inputs | {"return_dict": False}, given)
        folder = self.folder / f"pass-{len(self.opened)}"
        folder.mkdir(parents=True, exist_ok=True)
        model, expected = write(graph, folder, self.metadata)
        backend: Any = backends.load(self.runtime, "fp32", "cpu")
        backend.keep(model, self.metadata)
        model = model if model.exists() else folder / backend.IR
        run = open_runtime(self.runtime, model, self.precision)
        difference = None
        if self.precision == "fp32":
            feed = {name: t.contiguous().numpy() for name, t in zip(graph.names, graph.tensors, strict=True)}
            difference = _difference(expected, run(feed))
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"{self.runtime}'s output of a pass of {how.network} is {difference:.1e} of the largest from "
                    "PyTorch's, so it is not used."
                )
        file = PassGraphFile(
            file=str(model.relative_to(self.folder)), network=how.network, latents=tuple(inputs["sample"].shape),
            inputs=tuple(graph.names), inherits=_values(graph.given), keeps=_values(graph.kept), difference=difference,
        )  # fmt: skip
        return _Opened(file, graph.kept, run)

    def _open(self, call: tuple[Any, ...]) -> _Opened:
        """The written graph of a call; raises ValueError where there is none."""
        network, places, latents = call
        assert self.files is not None
        shapes = {file.latents for file in self.files}
        if latents not in shapes:
            raise ValueError(
                f"{self.folder} was exported for latents of {' or '.join(map(_shown, sorted(shapes)))}, got "
                f"{_shown(latents)}; draw one image at a time, of its size and with guidance as it was exported."
            )
        for file in self.files:
            if (file.network, _places(file), file.latents) == (network, places, latents):
                kept = _structures(file)
                return _Opened(file, kept, open_runtime(self.runtime, self.folder / file.file, self.precision))
        raise ValueError(
            f"{self.folder} has no graph for this step's pass; it holds those of whole images, from the first step on."
        )


def _difference(expected: Sequence[torch.Tensor], got: Sequence[Any]) -> float:
    """Largest difference of any output, as a share of the largest value of that output."""
    pairs = zip(expected, map(torch.from_numpy, got), strict=True)
    return max(float((own - other).abs().max() / own.abs().max().clamp_min(1e-12)) for own, other in pairs)


def _values(structures: Mapping[Key, TreeSpec]) -> tuple[GraphValue, ...]:
    return tuple(
        GraphValue(
            kind=place.kind, fqn=place.fqn, residual=place.residual, module=module,
            tensors=structure.num_leaves, structure=treespec_dumps(structure),
        )
        for (_, place, module), structure in structures.items()
    )  # fmt: skip


def _structures(file: PassGraphFile) -> dict[Key, TreeSpec]:
    """The structures of what a graph keeps, by key; raises ValueError for one that cannot be read."""
    structures: dict[Key, TreeSpec] = {}
    for value in file.keeps:
        try:
            structure = treespec_loads(value.structure)
        except Exception as error:  # whatever torch makes of it
            raise ValueError(f"the record of {file.file} has no structure of arrays: {error}.") from None
        structures[file.network, Place(value.kind, value.fqn, value.residual), value.module] = structure
    return structures


def _places(file: PassGraphFile) -> frozenset[Place]:
    return frozenset(Place(value.kind, value.fqn, value.residual) for value in file.inherits)


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
