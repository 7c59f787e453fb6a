"""A few examples of a data set of any kind: at random where it has numbers, the first ones of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from asdm.data.datasets import Stream, open_source
from asdm.data.datasets.prompts import Prompts, read_prompts
from asdm.data.loader import Reader, readers, usable


def open_captions(name: str, split: str, side: int) -> Any:
    """A data set of which only the captions are wanted: nothing is drawn for those of `prompts:FILE`."""
    kind, _, file = name.partition(":")
    return Prompts(read_prompts(file)) if kind == "prompts" else open_source(name, split, side)


def picked_captions(name: str, split: str, side: int, count: int, generator: torch.Generator) -> list[str]:
    """The captions of `count` examples of a data set."""
    return [example.caption for example in picked(open_captions(name, split, side), name, count, generator)]


def picked(data: Sequence[Any] | Stream, name: str, count: int, generator: torch.Generator) -> list[Any]:
    """`count` usable examples, the same ones for the same generator; raises ValueError where there are fewer."""
    order: Iterable[Reader]
    if isinstance(data, Stream):
        order = data.in_order(0)
    else:
        if len(data) < count:
            raise ValueError(f"prompts must be at most the {len(data)} of {name}, got {count}.")
        order = readers(data, torch.randperm(len(data), generator=generator).tolist())
    examples = list(usable(order, count))
    if len(examples) < count:
        raise ValueError(f"prompts must be at most the {len(examples)} usable examples of {name}, got {count}.")
    return examples
