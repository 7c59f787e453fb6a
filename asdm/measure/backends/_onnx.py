"""ONNX graphs of modules, exported once into a bounded cache, with every node named after its module.

`torch.onnx.export` writes the module path of a node into `pkg.torch.onnx.name_scopes`. A runtime's optimizer drops that
metadata but builds the names of fused and inserted nodes from those of the original nodes and tensors, so the path is
put in front of every name: `down_blocks.0.resnets.1.conv1|node_conv2d_7`.

The cache is the folder `onnx` of `ASDM_CACHE` (default: `~/.cache/asdm`), and may hold `ASDM_CACHE_GB` (default: 12):
folders by key, the least recently used deleted first.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.metadata as metadata
import inspect
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from asdm import __version__
from asdm.measure.backends import Attribution
from asdm.measure.clocks import Clock
from asdm.unet.blocks import Part
from asdm.utils import locks
from asdm.utils.cache import cache_folder
from asdm.utils.io import make_folder, whole_folder

MODEL = "model.onnx"
OUTPUT = "out_sample"
SEPARATOR = "|"  # between the path of modules and the name that the exporter gave
THROUGH_DICT = re.compile(r"\.?__dict__\['_modules'\]\['([^']+)'\]")
SPARE_BYTES = 64 << 20  # the graph itself, beside its weights
PACKAGES = ("torch", "diffusers", "onnx", "onnxscript")
DEFAULT_GB = 12.0


class Call(nn.Module):
    """`module` as a function of the tensors among `inputs`, in order; other arguments are fixed."""

    def __init__(self, module: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        leaves, self.spec = tree_flatten_with_path(inputs)
        self.fixed = [None if isinstance(leaf, torch.Tensor) else leaf for _, leaf in leaves]
        self.places = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        # The innermost key of an argument: `added_cond_kwargs["time_ids"]` → `time_ids`.
        self.names = [keystr(leaves[i][0][-1:]).strip("[]'\"") for i in self.places]
        self.tensors = tuple(leaves[i][1] for i in self.places)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        leaves = list(self.fixed)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        out = self.module(**tree_unflatten(leaves, self.spec))
        return out[0] if isinstance(out, tuple) else out

    def feed(self) -> dict[str, Any]:
        """The tensors by name as arrays, in fp32 like the graph."""
        tensors = (tensor.float() if tensor.is_floating_point() else tensor for tensor in self.tensors)
        return {name: tensor.numpy() for name, tensor in zip(self.names, tensors, strict=True)}


# ---------------------------------------------------------------------------------------------- export


def cached(module: nn.Module, inputs: dict[str, Any], keep_fp16: bool = False) -> Path:
    """The graph file of a call with these shapes, exported unless it is in the cache."""
    needed_bytes = sum(p.numel() * 4 for p in module.parameters()) + SPARE_BYTES
    key = key_of(module, inputs) + ("-fp16" if keep_fp16 else "")
    return get_or_make(key, needed_bytes, lambda at: export(module, inputs, at, keep_fp16=keep_fp16)) / MODEL


def export(
    module: nn.Module,
    inputs: dict[str, Any],
    folder: Path,
    batch_name: str | None = None,
    side_step: int | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
    keep_fp16: bool = False,
) -> Path:
    """Write `model.onnx` with its weights beside it, in fp32 whatever the module's dtype, or fp16 as it is.

    With `batch_name`, the first dimension of every input is free and is called so; with `side_step` as well, height and
    width of `sample` are free multiples of it. Raises ValueError where the graph cannot be made, in one sentence with
    the exporter's reason.
    """
    call = Call(module, inputs)
    if not keep_fp16 and any(p.dtype != torch.float32 for p in module.parameters()):
        call = copy.deepcopy(call).float()
    tensors = tuple(t.float() if t.is_floating_point() and not keep_fp16 else t for t in call.tensors)
    free = _free_dimensions(call.names, tensors, batch_name, side_step) if batch_name else None
    with quiet(), frozen(call), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            call,
            tensors,
            dynamo=True,
            verbose=False,
            input_names=call.names,
            output_names=[OUTPUT],
            dynamic_shapes=(free,) if free else None,
        )
    assert program is not None
    put_scopes_into_names(program.model)
    program.model.metadata_props.update(metadata)
    program.save(folder / MODEL, external_data=True)
    return folder / MODEL


def _free_dimensions(
    names: Sequence[str], tensors: Sequence[torch.Tensor], batch_name: str, side_step: int | None
) -> tuple[dict[int, Any], ...]:
    """The free dimensions of each input by their index; an input for the whole batch has none."""
    batch = torch.export.Dim(batch_name, min=1, max=1 << 16)
    sides = {}
    if side_step:
        rows, columns = (torch.export.Dim(name, min=1, max=1 << 10) for name in ("rows", "columns"))
        sides = {2: rows * side_step if side_step > 1 else rows, 3: columns * side_step if side_step > 1 else columns}
    return tuple(
        ({0: batch} if len(tensor) > 1 else {}) | (sides if name == "sample" else {})
        for name, tensor in zip(names, tensors, strict=True)
    )


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters created in inference mode require no gradient during the export, which cannot copy that flag."""
    inference_parameters = [p for p in module.parameters() if p.is_inference() and p.requires_grad]
    with torch.inference_mode():
        for parameter in inference_parameters:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        with torch.inference_mode():
            for parameter in inference_parameters:
                parameter.requires_grad_(True)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's warnings, which are about its internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def put_scopes_into_names(model: Any) -> None:
    """Put the module path in front of the name of every node and of every tensor that a node computes.

    A node that the exporter's own optimizer made has no path; it takes that of the node before it in the data flow.
    """
    outputs = set(model.graph.outputs)
    paths: dict[Any, str] = {}
    for i, node in enumerate(model.graph):
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        makers = [value.producer() for value in node.inputs if value is not None]
        candidates = [_module_path(ast.literal_eval(scopes))] if scopes else [paths[m] for m in makers if m in paths]
        if not candidates:
            continue
        paths[node] = path = candidates[0]
        node.name = f"{path}{SEPARATOR}{i}_{node.op_type}"
        for value in node.outputs:
            if value not in outputs:
                value.name = f"{path}{SEPARATOR}{value.name}"


def _module_path(scopes: Sequence[str]) -> str:
    """The innermost module of `['', 'module', 'module.conv_in', 'conv2d']` by its own path: `conv_in`.

    Where the exporter traced the bytecode, a path may read `module.__dict__['_modules']['conv_in']`.
    """
    path = max((THROUGH_DICT.sub(r".\1", scope) for scope in scopes[:-1]), key=len, default="")
    return path.removeprefix("module").removeprefix(".")


# ---------------------------------------------------------------------------------------------- names back to parts


class Node(NamedTuple):
    """One node of a runtime's own graph, and the time it took."""

    name: str
    seconds: float


class Scopes:
    """Maps the name of a node to the part that it belongs to."""

    def __init__(self, module: nn.Module, parts: Sequence[Part]) -> None:
        owners = {id(inner): part.fqn for part in parts for inner in part.modules}
        named = module.named_modules(remove_duplicate=False)
        self.parts = {path: owners[id(inner)] for path, inner in named if id(inner) in owners}
        self.attribution = Attribution()

    def part_of(self, name: str) -> str | None:
        """The part whose module's path leads the name; "" for a path outside every part; None without a path."""
        path, separator, _ = name.partition(SEPARATOR)
        if not separator:
            return None
        while path and path not in self.parts:
            path = path.rpartition(".")[0]
        return self.parts.get(path, "")

    def by_part(self, nodes: Sequence[Node], after_its_node: tuple[str, ...] = ()) -> list[str]:
        """The part of every node in the order they ran ("" for none).

        A node without a path takes the part of the next node that has one, or where its name begins with one of
        `after_its_node`, of the last node that had one.
        """
        known = [self.part_of(node.name) for node in nodes]
        return [
            part if part is not None else _neighbours(known, i, nodes[i].name.startswith(after_its_node))
            for i, part in enumerate(known)
        ]

    def times(
        self, nodes: Sequence[Node], after_its_node: tuple[str, ...], whole_s: float, bare_s: float
    ) -> dict[str, float]:
        """Seconds of every part in an observed call of `whole_s`, scaled to the bare call; appends to `attribution`."""
        seconds = dict.fromkeys(self.parts.values(), 0.0)
        for node, part in zip(nodes, self.by_part(nodes, after_its_node), strict=True):
            if part:
                seconds[part] += node.seconds
        self.attribution.mapped.append(sum(seconds.values()) / sum(node.seconds for node in nodes))
        self.attribution.slowdown.append(whole_s / bare_s)
        return {part: part_s * bare_s / whole_s for part, part_s in seconds.items()}


class GraphSession:
    """What the runtimes of exported graphs share: the graph's file, its inputs, and the parts of its nodes."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        self.clock, self.scopes = clock, Scopes(unet, parts)
        self.attribution = self.scopes.attribution
        self.graph, self.feed = cached(unet, inputs), Call(unet, inputs).feed()


def _neighbours(parts: Sequence[str | None], i: int, before: bool) -> str:
    """The nearest known part in one direction, or else in the other."""
    sides = [parts[:i][::-1], parts[i + 1 :]]
    near = [next((part for part in side if part is not None), None) for side in (sides if before else sides[::-1])]
    return next((part for part in near if part is not None), "")


# ---------------------------------------------------------------------------------------------- cache


def _bound_bytes() -> int:
    """The size limit; raises ValueError if `ASDM_CACHE_GB` is not a number."""
    text = os.environ.get("ASDM_CACHE_GB") or str(DEFAULT_GB)
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise ValueError(f"ASDM_CACHE_GB must be a number of GB, such as 12, got {text!r}.") from None


def get_or_make(key: str, needed_bytes: int, make: Callable[[Path], object], source: Path | None = None) -> Path:
    """The folder `key`, filled by `make` if it does not exist; about `needed_bytes` are freed for it first.

    `source` is an entry that `make` reads, and so is not deleted to make room.

    Raises ValueError if the limit or the disk is too small.
    """
    path = cache_folder("onnx") / key
    if not path.exists():
        _clear(needed_bytes, source)
        with whole_folder(path, force=True, needed=needed_bytes) as temporary:  # another process may make the same
            make(temporary)
    os.utime(path)
    if locks.AVAILABLE and path not in _IN_USE:
        _IN_USE[path] = locks.open_lock(path)
        with suppress(OSError):  # a file system without locks
            locks.lock(_IN_USE[path], shared=True, wait=False)
    return path


_IN_USE: dict[Path, int] = {}  # entries of this process, whose locks keep other processes from evicting them


def _may_evict(entry: Path) -> bool:
    """Whether no other process uses an entry; this one's own are given up."""
    if entry in _IN_USE:
        os.close(_IN_USE.pop(entry))
    return not locks.AVAILABLE or locks.is_free(entry)


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _clear(needed_bytes: int, kept: Path | None = None) -> None:
    """Delete the least recently used entries until `needed_bytes` more are within the limit.

    What is `kept`, what other processes use and what they are still writing, under a name with a leading dot, stays.
    """
    bound = _bound_bytes()
    at_once = needed_bytes + (_bytes_in(kept) if kept else 0)
    if at_once > bound:
        what = "the exported graph and its source take" if kept else "the exported graph takes"
        raise ValueError(
            f"{what} {at_once / 1e9:.1f} GB, but the cache may hold {bound / 1e9:g} GB; "
            f"set ASDM_CACHE_GB={at_once / 1e9 + 1:.0f} or more."
        )
    place = make_folder(cache_folder("onnx"))
    sizes, times = dict[Path, int](), dict[Path, int]()
    for path in place.iterdir():
        with suppress(OSError):  # another process may delete it now
            if path.is_dir() and not path.name.startswith("."):
                sizes[path] = _bytes_in(path)
                times[path] = path.stat().st_mtime_ns
    for path in sorted(times, key=lambda path: times[path]):
        with suppress(OSError):
            if sum(sizes.values()) + needed_bytes > bound and path != kept and _may_evict(path):
                shutil.rmtree(path, ignore_errors=True)
                del sizes[path]
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise ValueError(
            f"the exported graph takes {needed_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in {place}; "
            "set ASDM_CACHE to a folder with more space."
        )


def key_of(module: nn.Module, inputs: dict[str, Any]) -> str:
    """Hash of everything that the graph depends on: versions, modules and their code, config, shapes and weights."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())

    add(__version__, {package: metadata.version(package) for package in PACKAGES})
    add({key: value for key, value in dict(getattr(module, "config", {})).items() if not key.startswith("_")})
    files = set()
    for name, inner in module.named_modules():
        plain = {k: v for k, v in vars(inner).items() if not k.startswith("_") and isinstance(v, (int, float, str))}
        add(name, type(inner).__qualname__, inner.extra_repr(), plain)
        files.add(inspect.getfile(type(inner)))
    for file in sorted({*files, __file__}):
        digest.update(Path(file).read_bytes())
    for path, leaf in tree_flatten_with_path(inputs)[0]:
        add(keystr(path), [leaf.shape, leaf.dtype] if isinstance(leaf, torch.Tensor) else leaf)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        add(name, tensor.shape, tensor.dtype)
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
