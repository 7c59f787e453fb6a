"""Shapes of operators' outputs on the meta device, where torch takes long to find them: each is found once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class KnownShapes(TorchDispatchMode):
    """Inside, a call on the meta device whose like has been seen takes its outputs' shapes from there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Like(NamedTuple):
    """What tells tensors without values apart."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


_LIKE: dict[Any, Any] = {}  # operator and its arguments without values → its outputs without values


class _HasValues(Exception):
    """An argument has values, on which the outputs' shapes may depend."""


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """An operator's outputs; where all tensors are on the meta device, new ones of the shapes that are known."""
    if func.is_view or func._schema.is_mutable:
        return func(*args, **kwargs)
    try:
        key = func, _described(args), _described(tuple(kwargs.items()))
    except _HasValues:
        return func(*args, **kwargs)
    if key in _LIKE:
        return _restored(_LIKE[key])
    out = func(*args, **kwargs)
    inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _is_meta(leaf)}
    if all(_is_meta(leaf) and id(leaf.untyped_storage()) not in inputs for leaf in tree_leaves(out)):
        _LIKE[key] = tree_map(lambda leaf: _Like(leaf.shape, leaf.stride(), leaf.dtype), out)
    return out


def _described(value: Any) -> Any:
    """An argument without its tensors' values; hashable, unlike the structures of torch.utils._pytree before 2.8."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise _HasValues
        return _Like(value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, _CONSTANTS):
        return type(value), value
    raise _HasValues


_CONSTANTS = (int, float, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))


def _restored(kept: Any) -> Any:
    if isinstance(kept, _Like):
        return torch.empty_strided(kept.shape, kept.stride, dtype=kept.dtype, device="meta")
    return type(kept)(map(_restored, kept))


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta
