"""Replacements: what may take a unit's place. One file each.

A file defines `replace(unit, **options) -> nn.Module | None`: what the unit should become, or None where the
replacement does not apply. The new module shares the unit's weights; the given one is left as it was.
"""

from __future__ import annotations

import copy

from torch import nn


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of a module's structure whose parameters and buffers are the very same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
