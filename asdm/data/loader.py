"""Deterministic, resumable batches that several processes share.

A step's batch is a row of numbered positions; process r of w takes the positions r, r + w, …, so the batch does not
depend on the number of processes. The example at a position follows from the seed and the step alone.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from asdm.data.datasets import BrokenExample, Encoded, Example, Stream

T = TypeVar("T")


class Slot(NamedTuple):
    """An example, its position in the step's whole batch, and its index in the data set if it has one."""

    position: int
    example: Example | Encoded
    number: int | None


class Batch(NamedTuple):
    """This process's part of a batch, and the position in the data after it, which a checkpoint saves."""

    slots: list[Slot]
    place: dict[str, Any]
    broken: int  # unreadable examples so far


class Share(NamedTuple):
    """Process `rank` of `world`."""

    rank: int = 0
    world: int = 1


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on the numbers alone, such as (seed, stage, step, position)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def default_workers() -> int:
    """Threads that decode pictures where nobody says how many: one a core, from 2 to 8."""
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
    """Shuffled anew every epoch; an epoch may end within a batch, so the data set may be smaller than a batch."""
    if not len(data):
        raise ValueError("the data set is empty; training needs at least one example.")
    order = Orders(len(data), seed)
    broken = int(place.get("broken", 0))
    with ThreadPoolExecutor(workers) as threads:
        positions = range(share.rank, batch, share.world)
        while True:
            indices = [order.at(step * batch + position) for position in positions]
            examples = list(threads.map(lambda index: _readable_from(data, index), indices))
            broken += sum(skipped for _, _, skipped in examples)
            slots = [Slot(p, example, index) for p, (index, example, _) in zip(positions, examples, strict=True)]
            step += 1
            yield Batch(slots, {"broken": broken}, broken)


class Orders:
    """The example index at each place of an endless row of shuffled epochs."""

    def __init__(self, examples: int, seed: int) -> None:
        self.examples, self.seed, self.epoch = examples, seed, -1
        self.order = torch.empty(0)

    def at(self, place: int) -> int:
        epoch, position = divmod(place, self.examples)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, torch.randperm(self.examples, generator=seeded(self.seed, epoch))
        return int(self.order[position])


def _readable_from(data: Sequence[Any], index: int) -> tuple[int, Any, int]:
    """The first readable example from `index` on, as (its index, example, how many were skipped)."""
    for skipped in range(min(len(data), 1000)):
        at = (index + skipped) % len(data)
        try:
            return at, data[at], skipped
        except BrokenExample as error:
            last = error
    raise ValueError(f"none of the examples can be read: {last}") from None


def _from_lanes(
    data: Stream, batch: int, seed: int, share: Share, step: int, place: dict[str, Any], workers: int
) -> Iterator[Batch]:
    """Lane n mod lanes feeds the n-th position of all batches in a row, so that each lane belongs to one process."""
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
            broken = sum(at.get("broken", 0) for at in places.values())
            now = {str(lane): dict(at) for lane, at in places.items()}
            yield Batch(sorted(slots, key=lambda slot: slot.position), now, broken)


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
