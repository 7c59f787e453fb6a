"""Data sets of captioned pictures, for training, judging and calibration. One file each.

A file defines `open_data(split, size, source) -> Sequence[Example]`; `source` says where the files are, for a data set
that does not come with its own. A data set without random access is a `Stream` instead (`webdataset`), and one that was
encoded before yields `Encoded` instead of `Example` (`latents`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

import torch

from asdm.utils import registry
from asdm.utils.io import sha256_of

E = TypeVar("E")


class Example(NamedTuple):
    """A picture (3, h, w) in [-1, 1] and its caption."""

    image: torch.Tensor
    caption: str


class Encoded(NamedTuple):
    """An encoded example: mean and standard deviation (4, h, w) of its latent, and text states (tokens, c)."""

    mean: torch.Tensor
    std: torch.Tensor
    states: torch.Tensor
    caption: str


class Indexed(Sequence[E]):
    """A data set whose examples have an index; a subclass defines `example` and `__len__`."""

    def example(self, index: int) -> E:
        """The example at an index; raises BrokenExample if it cannot be read."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        if isinstance(index, slice):
            return [self.example(i) for i in range(*index.indices(len(self)))]
        return self.example(index)


class BrokenExample(ValueError):
    """An example that cannot be read; training skips and counts it."""


@runtime_checkable
class Stream(Protocol):
    """A data set that is read in order, in independent lanes."""

    lanes: int

    def read(self, seed: int, lane: int, place: dict[str, int]) -> Iterator[tuple[Example, dict[str, int]]]:
        """Endless examples of one lane from `place` on ({}: the beginning), each with the place after it."""
        ...


def open_source(name: str, split: str, size: int) -> Any:
    """Open `NAME` or `NAME:SOURCE`, such as `emoji` or `folder:photos/`; raises ValueError that lists the choices."""
    kind, _, source = name.partition(":")
    return registry.load(__name__, kind).open_data(split, size, source or None)


def fingerprint(data: Any) -> str:
    """Hash that identifies a data set, so that a run is not resumed with other pictures."""
    own = getattr(data, "fingerprint", None)
    return own if own else sha256_of([len(data), *data.captions])[:16]


def captions_of(data: Sequence[Any] | Stream, count: int) -> list[str]:
    """The first `count` captions of a data set."""
    if isinstance(data, Stream):
        reader = data.read(0, 0, {})
        return [next(reader)[0].caption for _ in range(count)]
    captions = getattr(data, "captions", None)
    return list(captions[:count]) if captions else [data[i].caption for i in range(min(count, len(data)))]
