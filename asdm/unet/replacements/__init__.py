"""Replacements: what may take a unit's place. One file each.

A file defines `replace(unit, siblings=(), **options) -> nn.Module | None`: what the unit should become, or None where
the replacement does not apply. `siblings` are the units of the same kind in the same block of the original, in the
order of their layers, the unit itself and those that a plan removes among them. The new module shares the unit's
weights and copies what it takes from siblings; the given ones are left as they were. A file may define
`prepare(unet)`, which is called once when the replacements of a plan are in their UNet.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of a module's structure whose parameters and buffers are the very same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return _copied(module, {id(tensor): tensor for tensor in tensors})


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """What `copy.deepcopy` makes of a module, several times as fast: it spares the dozen empty dicts of each."""
    if id(module) in memo or hasattr(module, "__deepcopy__"):
        return copy.deepcopy(module, memo)
    memo[id(module)] = copied = type(module).__new__(type(module))
    for name, value in vars(module).items():
        if name == "_modules":
            value = {key: child if child is None else _copied(child, memo) for key, child in value.items()}
        elif isinstance(value, dict | set) and not value:
            value = value.copy()
        elif not isinstance(value, bool | int | float | str | None):
            value = copy.deepcopy(value, memo)
        vars(copied)[name] = value
    return copied
