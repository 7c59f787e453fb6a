"""Exact MACs on the meta device, split into convolution, linear and attention; per part and in all.

Why not a profiler's own counter: on real CPU tensors attention is counted as nothing, and an unknown operator
as nothing too. Here attention is counted where it is called, and an operator that neither has a formula nor
is known to be free of multiply-adds by convention is listed in `uncounted_ops`.

Convention: one multiply-add = one MAC = two FLOPs; normalisation, activation, softmax and interpolation are
not counted, as everywhere in the field. Bytes moved by a part are what it reads of others (its parameters and the
activations that come in, each once) and what others read of it: what a part inside which nothing is moved twice needs.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from asdm.records.measurement import Macs
from asdm.unet.blocks import OTHER, Part, hooked
from asdm.unet.shapes import computed

aten = torch.ops.aten


@dataclass
class Count:
    """What one call costs; `by_part` has a row for each part and one for `other`."""

    params: int
    total: Macs
    by_part: dict[str, Macs] = field(default_factory=dict)
    peak_by_part: dict[str, int] = field(default_factory=dict)  # live activation bytes at the part's worst moment
    moved_by_part: dict[str, int] = field(default_factory=dict)  # bytes that go into and out of a part
    calls_by_part: dict[str, int] = field(default_factory=dict)  # operators that compute or copy something
    peak_activation_bytes: int = 0
    parameter_bytes: int = 0
    layer_norm_by_part: dict[str, int] = field(default_factory=dict)  # elements that LayerNorms see
    uncounted_ops: dict[str, int] = field(default_factory=dict)

    @property
    def peak_memory_bytes(self) -> int:
        return self.parameter_bytes + self.peak_activation_bytes

    @property
    def thop_macs(self) -> int:
        """The total by the rule behind the published BK-SDM figures."""
        return thop_macs(self.total, sum(self.layer_norm_by_part.values()))


def thop_macs(macs: Macs, layer_norm_elements: int) -> int:
    """thop's rule: linear + convolution + 4 per LayerNorm element; attention's matrix products are left out."""
    return macs.conv_macs + macs.linear_macs + 4 * layer_norm_elements


def count(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], parts: Sequence[Part] = ()) -> Count:
    """Count one call of `model`, whose tensors and arguments may live on the meta device."""
    parameters = {id(p): p for p in model.parameters()}.values()
    counter = _Counter(resident=[p.untyped_storage() for p in parameters])
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # where operators would reach us undecomposed
        stack.enter_context(torch.no_grad())
        stack.enter_context(hooked(parts, counter.enter, counter.leave) if parts else nullcontext())
        stack.enter_context(_CountAttention(counter))
        stack.enter_context(counter)
        counter.read(model(*args, **kwargs), "")  # by the caller
    by_part = {part.fqn: counter.macs(part.fqn) for part in parts} | ({OTHER: counter.macs(OTHER)} if parts else {})
    return Count(
        params=sum(p.numel() for p in parameters),
        total=sum((counter.macs(row) for row in counter.rows), Macs()),
        by_part=by_part,
        peak_by_part=dict(counter.peaks),
        moved_by_part={row: counter.moved[row] for row in by_part},
        calls_by_part={row: counter.calls[row] for row in by_part},
        peak_activation_bytes=max(counter.peaks.values(), default=0),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        layer_norm_by_part=dict(counter.layer_norm),
        uncounted_ops=dict(counter.uncounted),
    )


# ---------------------------------------------------------------------------------------------- formulas


def attention_macs(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """QKᵀ and AV of shapes (…, n, d), (…, m, d), (…, m, e): n·m·(d+e) for every leading index, broadcast."""
    leading = torch.broadcast_shapes(query[:-2], key[:-2], value[:-2])
    return prod(leading) * query[-2] * key[-2] * (query[-1] + value[-1])


def _convolution(inputs: Any, weight: Any, *rest: Any, out: Any) -> int:
    transposed = rest[4]
    return (inputs if transposed else out).numel() * prod(weight.shape[1:])


FORMULAS = {
    # operator → (column, MACs)
    aten.convolution.default: ("conv_macs", _convolution),
    aten.mm.default: ("linear_macs", lambda a, b, out: prod(a.shape) * b.shape[-1]),
    aten.addmm.default: ("linear_macs", lambda c, a, b, out: prod(a.shape) * b.shape[-1]),
    aten.addmm_.default: ("linear_macs", lambda c, a, b, out: prod(a.shape) * b.shape[-1]),
    aten.linear.default: ("linear_macs", lambda a, w, *c, out: prod(a.shape) * w.shape[0]),
    # A batched product that is not F.scaled_dot_product_attention is the two halves of a plain attention.
    aten.bmm.default: ("attention_macs", lambda a, b, out: prod(a.shape) * b.shape[-1]),
    aten.baddbmm.default: ("attention_macs", lambda c, a, b, out: prod(a.shape) * b.shape[-1]),
}

# Free by convention, beside views and pointwise operators, which torch tags itself.
FREE = {
    "_adaptive_avg_pool2d", "_local_scalar_dense", "_reshape_alias", "_safe_softmax", "_softmax", "_to_copy",
    "_unsafe_view", "alias", "all", "amax", "amin", "any", "arange", "argmax", "argmin", "avg_pool2d", "cat", "clone",
    "constant_pad_nd", "contiguous", "copy_", "cumsum", "detach", "embedding", "empty", "equal", "expand", "fill_",
    "flip", "full", "full_like", "gather", "index", "index_put", "index_select", "lift_fresh", "linalg_vector_norm",
    "masked_fill", "max", "mean", "min", "native_group_norm", "native_layer_norm", "new_empty", "new_ones",
    "new_zeros", "ones", "ones_like", "repeat", "replication_pad2d", "roll", "scalar_tensor", "scatter",
    "scatter_add", "select_scatter", "slice_scatter", "sort", "split", "split_with_sizes", "stack", "sum", "tril",
    "triu", "unbind", "upsample_nearest2d", "zeros", "zeros_like",
}  # fmt: skip


def _is_free(func: Any) -> bool:
    name = func._schema.name.partition("::")[2]
    return func.is_view or torch.Tag.pointwise in func.tags or name in FREE or name.rstrip("_") in FREE


# ---------------------------------------------------------------------------------------------- the modes


class _Counter(TorchDispatchMode):
    """Adds every operator to the row of the part that is running, and follows the memory that is alive."""

    def __init__(self, resident: Sequence[Any]) -> None:
        super().__init__()
        self.open = [OTHER]
        self.resident = {id(storage): storage for storage in resident}  # weights: views of them are not activations
        self.rows: dict[str, Counter[str]] = {OTHER: Counter()}
        self.peaks: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.layer_norm: Counter[str] = Counter()
        self.live_bytes = 0
        self.storages: dict[int, weakref.ref[Any]] = {}
        self.moved: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.makers: dict[int, str] = {}  # storage → the part that made it
        self.readers: dict[int, set[str]] = {}  # storage → the parts that have read it

    def enter(self, fqn: str) -> None:
        self.open.append(fqn)
        self.rows.setdefault(fqn, Counter())

    def leave(self, fqn: str) -> None:
        assert self.open.pop() == fqn

    def add(self, column: str, macs: int) -> None:
        self.rows[self.open[-1]][column] += macs

    def macs(self, row: str) -> Macs:
        return Macs(**dict(self.rows.get(row, {})))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = computed(func, args, kwargs or {})
        if not func.is_view:
            self.calls[self.open[-1]] += 1
            self.read((args, kwargs), self.open[-1])
        if func in FORMULAS:
            column, formula = FORMULAS[func]
            self.add(column, formula(*args, out=out))  # type: ignore[operator]
        elif func is aten.native_layer_norm.default:
            self.layer_norm[self.open[-1]] += args[0].numel()
        elif not _is_free(func):
            self.uncounted[str(func)] += 1
        self._follow(out)
        return out

    def read(self, values: Any, reader: str) -> None:
        """Count a storage once for its maker and once for each other part that reads it."""
        for tensor in tree_iter(values):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, maker = id(storage), self.makers.get(id(storage), "")
            readers = self.readers.setdefault(key, set())
            if reader == maker or reader in readers:
                continue
            if maker and not readers:
                self.moved[maker] += storage.nbytes()
            if reader:
                self.moved[reader] += storage.nbytes()
            readers.add(reader)

    def _follow(self, out: Any) -> None:
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._track(tensor.untyped_storage())
        row = self.open[-1]
        self.peaks[row] = max(self.peaks[row], self.live_bytes)

    def _track(self, storage: Any) -> None:
        key = id(storage)
        if key in self.storages or key in self.resident:
            return
        nbytes = storage.nbytes()
        self.live_bytes += nbytes
        self.makers[key] = self.open[-1]

        def gone(_: Any) -> None:
            self.live_bytes -= nbytes
            for followed in (self.storages, self.makers, self.readers):
                followed.pop(key, None)

        self.storages[key] = weakref.ref(storage, gone)


class _CountAttention(TorchFunctionMode):
    """Counts scaled dot-product attention where it is called, before a kernel hides it."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3] if len(args) >= 3 else (kwargs[n] for n in ("query", "key", "value"))
        self.counter.add("attention_macs", attention_macs(query.shape, key.shape, value.shape))
        # A fused kernel holds no scores: what it allocates is its output.
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        return query.new_empty((*leading, query.shape[-2], value.shape[-1]))


# ---------------------------------------------------------------------------------------------- second opinion


def count_by_fvcore(model: nn.Module, args: Sequence[torch.Tensor]) -> Macs:
    """The same count by fvcore (a jit trace of real tensors), which is given a handle for attention.

    `model` takes tensors and returns a tensor. fvcore counts normalisation too; those columns are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

    def attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return attention_macs(*(value.type().sizes() for value in inputs[:3]))

    analysis = FlopCountAnalysis(model, tuple(args)).set_op_handle("aten::scaled_dot_product_attention", attention)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the jit that fvcore rests on
        counts = analysis.by_operator()
    return Macs(
        conv_macs=int(counts["conv"]),
        linear_macs=int(counts["linear"] + counts["addmm"] + counts["matmul"]),
        attention_macs=int(counts["scaled_dot_product_attention"] + counts["bmm"]),
    )
