"""Deterministic, resumable batches that several processes share.

A step's batch is a row of numbered positions; process r of w takes the positions r, r + w, …, so the batch does not
depend on the number of processes. The example at a position follows from the seed and the step alone.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from asdm.data.datasets import NAMES, BrokenExample, Encoded, Example, LeftOut, Stream, count_in
from asdm.utils import console

T = TypeVar("T")
Reader = Callable[[], Any]
MOST_BROKEN = 1000  # examples in a row, after which training stops


class Slot(NamedTuple):
    """An example, its position in the step's whole batch, and its index in the data set if it has one."""

    position: int
    example: Example | Encoded
    number: int | None


class Batch(NamedTuple):
    """This process's part of a batch, and the position in the data after it, which a checkpoint saves.

    The position holds the examples that were left out so far (`left_out_by`); each counts once, in the first pass.
    """

    slots: list[Slot]
    place: dict[str, Any]


class Share(NamedTuple):
    """Process `rank` of `world`."""

    rank: int = 0
    world: int = 1


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on the numbers alone, such as (seed, stage, step, position)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def default_workers() -> int:
    """Threads that decode pictures by default: one a core, from 2 to 8."""
    return max(2, min(8, os.cpu_count() or 2))


def batches(
    data: Sequence[Any] | Stream, batch: int, seed: int, share: Share, step: int, place: dict[str, Any], workers: int
) -> Iterator[Batch]:
    """This process's batches from step `step` on, decoded by `workers` threads."""
    if isinstance(data, Stream):
        return _from_lanes(data, batch, seed, share, step, place, workers)
    return _by_number(data, batch, seed, share, step, place, workers)


def _by_number(
    data: Sequence[Any], batch: int, seed: int, share: Share, step: int, place: dict[str, Any], workers: int
) -> Iterator[Batch]:
    """Reshuffled every epoch; an epoch may end within a batch, so the data set may be smaller than a batch.

    Where the data have several shapes, a batch has one.
    """
    if not len(data):
        raise ValueError("the data set is empty; training needs at least one example.")
    shapes = getattr(data, "shapes", None)
    order = BucketOrders(shapes, batch, seed) if shapes else Orders(len(data), seed)
    counted = own_part(place, share)
    if not place and share.rank == 0:  # what opening the data set left out
        counted = getattr(data, "left_out", LeftOut()).place
    with ThreadPoolExecutor(workers) as threads:
        positions = range(share.rank, batch, share.world)
        while True:
            places = [step * batch + position for position in positions]
            indices = [order.at(place) for place in places]
            examples = list(threads.map(lambda index: _readable_from(data, index, order), indices))
            for place_in_data, (_, _, error) in zip(places, examples, strict=True):
                if error and order.is_first(place_in_data, getattr(data, "pictures", len(data))):
                    counted = count_in(counted, error.reason, error.name)
            slots = [Slot(p, example, index) for p, (index, example, _) in zip(positions, examples, strict=True)]
            step += 1
            yield Batch(slots, counted)


class Orders:
    """The example index at each place of an endless row of shuffled epochs."""

    def __init__(self, examples: int, seed: int) -> None:
        self.length, self.seed, self.epoch = examples, seed, -1
        self.order = torch.empty(0)

    def at(self, place: int) -> int:
        epoch, position = divmod(place, self.length)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._shuffled(seeded(self.seed, epoch))
        return int(self.order[position])

    def instead_of(self, index: int, tries: int) -> int:
        """The example that takes the place of one that cannot be read."""
        return (index + tries) % self.length

    def is_first(self, place: int, pictures: int) -> bool:
        """Whether no earlier place has the same picture; the example `pictures` further on is the same, mirrored."""
        if place >= self.length:
            return False
        order = self._first_epoch % pictures
        return not bool((order[:place] == order[place]).any())

    @cached_property
    def _first_epoch(self) -> torch.Tensor:
        return self._shuffled(seeded(self.seed, 0))

    def _shuffled(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(self.length, generator=generator)


class BucketOrders(Orders):
    """Orders in which each batch has examples of one shape; a shape's last batch is filled up from its first ones."""

    def __init__(self, shapes: Sequence[Any], batch: int, seed: int) -> None:
        members: dict[Any, list[int]] = {}
        for index, shape in enumerate(shapes):
            members.setdefault(shape, []).append(index)
        self.batch, self.members = batch, [torch.tensor(own) for _, own in sorted(members.items())]
        self.bucket = {int(index): own for own in self.members for index in own}
        super().__init__(sum(-(-len(own) // batch) for own in self.members) * batch, seed)

    def instead_of(self, index: int, tries: int) -> int:
        own = self.bucket[index]
        return int(own[(int((own == index).nonzero()) + tries) % len(own)])

    def _shuffled(self, generator: torch.Generator) -> torch.Tensor:
        rows = []
        for own in self.members:
            mixed = own[torch.randperm(len(own), generator=generator)]
            wanted = -(-len(own) // self.batch) * self.batch
            rows.append(mixed.repeat(-(-wanted // len(own)))[:wanted].view(-1, self.batch))
        batches = torch.cat(rows)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()


def _readable_from(data: Sequence[Any], index: int, order: Orders) -> tuple[int, Any, BrokenExample | None]:
    """The first readable example from `index` on, as (its index, example, why not the one at `index`)."""
    first: BrokenExample | None = None
    most = min(len(data), MOST_BROKEN)
    for tries in range(most):
        at = order.instead_of(index, tries) if tries else index
        try:
            return at, data[at], first
        except BrokenExample as error:
            first = first or error
    which = "the examples" if most == len(data) else f"{most} examples in a row"
    raise ValueError(f"none of {which} can be read: {first}.") from None


def _from_lanes(
    data: Stream, batch: int, seed: int, share: Share, step: int, place: dict[str, Any], workers: int
) -> Iterator[Batch]:
    """Lane n mod lanes feeds the n-th position of all batches in a row, so that each lane belongs to one process."""
    if getattr(getattr(data, "selection", None), "buckets", False):
        raise ValueError("a batch of shards has pictures of several shapes; cache them first (asdm cache --buckets).")
    if data.lanes % share.world:
        raise ValueError(
            f"{data.lanes} lanes of shards cannot be split between {share.world} processes; choose a number of "
            f"processes that divides {data.lanes}, or more shards."
        )
    places = {lane: dict(place.get(str(lane), {})) for lane in range(share.rank, data.lanes, share.world)}
    readers = {lane: data.read(seed, lane, at) for lane, at in places.items()}
    with ThreadPoolExecutor(workers) as threads:

        def next_of(lane: int) -> list[Slot]:
            slots = []
            for position in range((lane - step * batch) % data.lanes, batch, data.lanes):
                example, places[lane] = next(readers[lane])
                slots.append(Slot(position, example, None))
            return slots

        while True:
            slots = [slot for row in threads.map(next_of, places) for slot in row]
            step += 1
            now = {str(lane): dict(at) for lane, at in places.items()}
            yield Batch(sorted(slots, key=lambda slot: slot.position), now)


# ---------------------------------------------------------------------------------------------- what was left out


def own_part(place: Mapping[str, Any], share: Share) -> dict[str, Any]:
    """What this process continues of a position in the data: its own lanes; the counts of data without lanes, once."""
    return {key: at for key, at in place.items() if (int(key) % share.world if key.isdigit() else 0) == share.rank}


def merged(places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One position in the data of those of all processes."""
    whole = {key: at for place in places for key, at in place.items()}
    if "skipped" in whole:
        whole["skipped"], whole["names"] = left_out_by({str(rank): place for rank, place in enumerate(places)})
    return whole


def left_out_by(place: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """How many examples were left out by a position in the data, by reason, and the first names of each."""
    parts = [place[lane] for lane in sorted(filter(str.isdigit, place), key=int)] or [place]
    skipped, names = Counter[str](), dict[str, list[str]]()
    for part in parts:
        skipped.update(part.get("skipped", {}))
        for reason, some in part.get("names", {}).items():
            names[reason] = [*names.get(reason, []), *some][:NAMES]
    return dict(skipped), names


def readers(data: Sequence[Any], indices: Iterable[int]) -> Iterator[Reader]:
    """Functions that read examples, in order, as a stream's `in_order` gives them."""
    return (partial(data.__getitem__, index) for index in indices)


def usable(order: Iterable[Reader], most: int) -> Iterator[Any]:
    """The first `most` examples that can be read; broken ones are left out, counted by their reason and said."""
    yielded, left_out = 0, LeftOut()
    for read in order:
        if yielded == most:
            break
        try:
            example = read()
        except BrokenExample as error:
            if not error.mirrored:
                left_out.add(error.reason, error.name)
            continue
        yielded += 1
        yield example
    for line in left_out.lines():
        console.say_once(line)


# ---------------------------------------------------------------------------------------------- prefetching


@contextmanager
def ahead(source: Iterator[T], depth: int = 2) -> Iterator[Callable[[], T]]:
    """Prefetch up to `depth` items of `source` in a thread; an error is raised when its item is taken."""
    prefetched: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                prefetched.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put((item, None))
                if stop.is_set():
                    return
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def take() -> T:
        item, error = prefetched.get()
        if error is not None:
            raise error
        return item

    try:
        yield take
    finally:
        stop.set()
        thread.join(timeout=5)
