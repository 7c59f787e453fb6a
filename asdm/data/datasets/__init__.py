"""Data sets of captioned pictures, for training, judging and calibration. One file each.

A file defines `open_data(split, size, source) -> Sequence[Example]`; `source` says where the files are, for a data set
that does not come with its own. A data set without random access is a `Stream` instead (`webdataset`), and one that was
encoded before yields `Encoded` instead of `Example` (`latents`). One that can leave out, mirror or bucket pictures
takes a `Selection` as well.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

import torch

from asdm.data.settings import Selection
from asdm.utils import console, registry
from asdm.utils.record import sha256_of

E = TypeVar("E")
NAMES = 3  # of left-out examples that are listed for each reason


class Example(NamedTuple):
    """A picture (3, h, w) in [-1, 1] and its caption.

    `time_ids` is what SDXL learns about a picture: its height and width as it was, what was cut off at the top and on
    the left, and the height and width that it has now; empty where nothing was scaled or cut.
    """

    image: torch.Tensor
    caption: str
    time_ids: tuple[int, ...] = ()


class Encoded(NamedTuple):
    """An encoded example: mean and standard deviation (4, h, w) of its latent, and text states (tokens, c).

    SDXL's has the pooled text (c,) and the six time ids as well.
    """

    mean: torch.Tensor
    std: torch.Tensor
    states: torch.Tensor
    caption: str
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None


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
    """An example that cannot be used, and why; training leaves it out and counts it by its reason.

    A `mirrored` one is the same picture as an example that is counted already.
    """

    def __init__(self, reason: str, name: str = "", mirrored: bool = False) -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason, self.name, self.mirrored = reason, name, mirrored


class LeftOut:
    """Examples that were left out, counted by reason, with the first names; several threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        with self._lock:
            self.counts[reason] = self.counts.get(reason, 0) + 1
            if len(first := self.names.setdefault(reason, [])) < NAMES:
                first.append(console.plain(name))

    def lines(self) -> list[str]:
        """A sentence for each reason."""
        return lines_of(self.counts, self.names)

    @property
    def place(self) -> dict[str, Any]:
        """What `count_in` continues: a position in the data with these counts and names."""
        with self._lock:
            return {
                "skipped": dict(self.counts),
                "names": {reason: list(names) for reason, names in self.names.items()},
            }


def lines_of(counts: Mapping[str, int], names: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each reason that examples were left out for."""
    return [
        f"Left out {count} example{'' if count == 1 else 's'}, {reason}: {named(names.get(reason, ()), count)}"
        f"{'' if count > NAMES else '.'}"
        for reason, count in counts.items()
    ]


def named(names: Sequence[str], count: int) -> str:
    """The first names of `count` examples, with "…" where there are more."""
    return ", ".join(names) + (", …" if count > len(names) else "")


def count_in(place: Mapping[str, Any], reason: str, name: str, say: bool = True) -> dict[str, Any]:
    """A position in the data with one more example left out (`skipped`), and its name if it is among the first.

    The first names of each reason are said as well.
    """
    skipped, names = place.get("skipped", {}), place.get("names", {})
    if len(first := names.get(reason, [])) < NAMES:
        names = names | {reason: [*first, console.plain(name)]}
        rest = "; more of these are only counted" if len(names[reason]) == NAMES else ""
        if say:
            console.say_once(f"Left out {name}: {reason}{rest}.")
    return dict(place) | {"skipped": skipped | {reason: skipped.get(reason, 0) + 1}, "names": names}


@runtime_checkable
class Stream(Protocol):
    """A data set that is read in order, in independent lanes."""

    lanes: int

    def read(self, seed: int, lane: int, place: dict[str, Any]) -> Iterator[tuple[Example, dict[str, Any]]]:
        """Endless examples of one lane from `place` on ({}: the beginning), each with the place after it."""
        ...

    def in_order(self, first: int) -> Iterator[Any]:
        """Every example once, from the `first` on, as a function that decodes it or raises BrokenExample."""
        ...


def open_source(name: str, split: str, size: int, selection: Selection = Selection()) -> Any:
    """Open `NAME` or `NAME:SOURCE`, such as `emoji` or `folder:photos/`; raises ValueError that lists the choices."""
    kind, _, source = name.partition(":")
    opener = registry.load(__name__, kind).open_data
    takes = inspect.signature(opener).parameters
    given: dict[str, Any] = {"source": source} if source or "source" in takes else {}
    if "selection" in takes:
        given["selection"] = selection
    elif asked := selection.asked():
        raise ValueError(f"the data set {kind} has no {asked[0]}; leave it out, or choose folder: or webdataset:.")
    if not given.get("source"):
        given.pop("source", None)
    elif "source" not in takes:
        raise ValueError(f"the data set {kind} has its own pictures; leave out {source!r}.")
    return opener(split, size, **given)


def fingerprint(data: Any) -> str:
    """Hash that identifies a data set, so that a run is not resumed with other pictures."""
    own = getattr(data, "fingerprint", None)
    return own if own else sha256_of([len(data), *data.captions])[:16]


def captions_of(data: Sequence[Any] | Stream, count: int) -> list[str]:
    """The first `count` captions of a data set; of examples without a list of captions, those that can be read."""
    if isinstance(data, Stream):
        reader = data.read(0, 0, {})
        return [next(reader)[0].caption for _ in range(count)]
    if captions := getattr(data, "captions", None):
        return list(captions[:count])
    return list(islice(_readable_captions(data), count))


def _readable_captions(data: Sequence[Any]) -> Iterator[str]:
    for index in range(len(data)):
        with suppress(BrokenExample):
            yield data[index].caption
