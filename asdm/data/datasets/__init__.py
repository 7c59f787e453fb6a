"""Data sets: captioned pictures to train, judge and calibrate on. One file each.

A file defines `open_data(split, size, source) -> Sequence[Example]`; `source` is where its files are, for a data set
that does not bring its own. What is too large to be looked up by number is a `Stream` instead (`webdataset`), and what
was encoded before gives `Encoded` instead of `Example` (`latents`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from asdm.utils import registry
from asdm.utils.io import sha256_of


class Example(NamedTuple):
    """A picture (3, h, w) in [-1, 1], and what it shows."""

    image: torch.Tensor
    caption: str


class Encoded(NamedTuple):
    """What VAE and text encoder make of an example: mean and spread (4, h, w) of its latent, and states (tokens, c)."""

    mean: torch.Tensor
    std: torch.Tensor
    states: torch.Tensor
    caption: str


class BrokenExample(ValueError):
    """An example that cannot be read; whoever trains leaves it out and counts it."""


@runtime_checkable
class Stream(Protocol):
    """Examples that come one after the other, in lanes that do not know of each other."""

    lanes: int

    def read(self, seed: int, lane: int, place: dict[str, int]) -> Iterator[tuple[Example, dict[str, int]]]:
        """Examples of one lane without end, from `place` on ({}: the beginning), each with the place after it."""
        ...


def open_source(name: str, split: str, size: int) -> Any:
    """The data set of `NAME` or `NAME:WHERE`, such as `emoji`, `folder:photos/`; raises ValueError with the choices."""
    kind, _, source = name.partition(":")
    return registry.load(__name__, kind).open_data(split, size, source or None)


def fingerprint(data: Any) -> str:
    """What tells a data set from another, so that a run does not go on with other pictures."""
    own = getattr(data, "fingerprint", None)
    return own if own else sha256_of([len(data), *data.captions])[:16]


def captions_of(data: Sequence[Any] | Stream, count: int) -> list[str]:
    """The first few captions of a data set, for pictures to look at."""
    if isinstance(data, Stream):
        reader = data.read(0, 0, {})
        return [next(reader)[0].caption for _ in range(count)]
    captions = getattr(data, "captions", None)
    return list(captions[:count]) if captions else [data[i].caption for i in range(min(count, len(data)))]
