"""Transformer units without one of their three parts: a constant is added in its place, zero until it is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from asdm.unet.replacements import Refit, shared_copy
from asdm.unet.replacements._layers import Constant, transformer_blocks


def without(unit: nn.Module, place: str, norm: str, last: Callable[[Any], nn.Linear]) -> nn.Module | None:
    """The Transformer unit without the part at `place` of every block and without its norm, or None if it has none."""
    if not any(getattr(block, place, None) is not None for block in transformer_blocks(unit)):
        return None
    unit = shared_copy(unit)
    for block in transformer_blocks(unit):
        if (part := getattr(block, place, None)) is not None:
            setattr(block, place, Constant(last(part).weight[:, 0]))
            setattr(block, norm, nn.Identity())
    return unit


def part_refits(unit: nn.Module, place: str) -> Iterator[Refit]:
    """The constants at `place`, which are to be the mean of what stood there."""
    for i, block in enumerate(transformer_blocks(unit)):
        if isinstance(getattr(block, place, None), Constant):
            yield Refit(f"transformer_blocks.{i}.{place}", f"transformer_blocks.{i}.{place}")
