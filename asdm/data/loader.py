"""Which examples a step gets, on which process, and how to go on from there after a stop.

A step's batch is one row of numbered places, and process r of w takes places r, r + w, … So the batch is the same
however many processes share it. Which example is at a place follows from the seed and the step alone.
"""

from __future__ import annotations

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
    """An example, its place in the step's whole batch, and its number in the data set where it has one."""

    position: int
    example: Example | Encoded
    number: int | None


class Batch(NamedTuple):
    """This process's part of a step, and where the data are after it: what a checkpoint keeps."""

    slots: list[Slot]
    place: dict[str, Any]
    broken: int  # examples that could not be read, so far


class Share(NamedTuple):
    """Process `rank` of `world`."""

    rank: int = 0
    world: int = 1


def seeded(*numbers: int) -> torch.Generator:
    """A generator of its own for, say, (seed, stage, step, place): the same one wherever it is asked for."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def batches(
    data: Sequence[Any] | Stream, batch: int, seed: int, share: Share, step: int, place: dict[str, Any], workers: int
) -> Iterator[Batch]:
    """This process's part of step `step` and all that follow, decoded by `workers` threads."""
    if isinstance(data, Stream):
        return _from_lanes(data, batch, seed, share, step, place, workers)
    return _by_number(data, batch, seed, share, step, place, workers)


def _by_number(
    data: Sequence[Any], batch: int, seed: int, share: Share, step: int, place: dict[str, Any], workers: int
) -> Iterator[Batch]:
    """A new order every epoch; an epoch may end within a batch, so a set smaller than a batch will do."""
    if not len(data):
        raise ValueError("the data set has no example to train on.")
    order = _Orders(len(data), seed)
    broken = int(place.get("broken", 0))
    with ThreadPoolExecutor(workers) as threads:
        while True:
            positions = range(share.rank, batch, share.world)
            wanted = [(p, order.at(step * batch + p)) for p in positions]
            found = list(threads.map(lambda pair: _whole_one(data, pair[1]), wanted))
            broken += sum(skipped for _, _, skipped in found)
            slots = [Slot(p, example, index) for (p, _), (index, example, _) in zip(wanted, found, strict=True)]
            step += 1
            yield Batch(slots, {"broken": broken}, broken)


class _Orders:
    """The example at each place of an endless row of shuffled epochs."""

    def __init__(self, examples: int, seed: int) -> None:
        self.examples, self.seed, self.epoch = examples, seed, -1
        self.order = torch.empty(0)

    def at(self, place: int) -> int:
        epoch, position = divmod(place, self.examples)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, torch.randperm(self.examples, generator=seeded(self.seed, epoch))
        return int(self.order[position])


def _whole_one(data: Sequence[Any], index: int) -> tuple[int, Any, int]:
    """The example `index`, or the next one that can be read: (its number, itself, how many could not be)."""
    for skipped in range(min(len(data), 1000)):
        at = (index + skipped) % len(data)
        try:
            return at, data[at], skipped
        except BrokenExample as error:
            last = error
    raise ValueError(f"no example can be read: {last}") from None


def _from_lanes(
    data: Stream, batch: int, seed: int, share: Share, step: int, place: dict[str, Any], workers: int
) -> Iterator[Batch]:
    """The n-th place of all batches in a row is fed by lane n mod lanes, so lanes are dealt out to processes whole."""
    if data.lanes % share.world:
        raise ValueError(
            f"{data.lanes} lanes of shards cannot be shared by {share.world} processes: choose a number of processes "
            f"that divides {data.lanes}, or more shards."
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


# ---------------------------------------------------------------------------------------------- ahead of the step


@contextmanager
def ahead(source: Iterator[T], depth: int = 2) -> Iterator[Callable[[], T]]:
    """Read `source` in a thread, up to `depth` items before they are asked for; an error comes when its item would."""
    waiting: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def give(item: Any) -> None:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                give((item, None))
                if stop.is_set():
                    return
        except BaseException as error:
            give((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def take() -> T:
        item, error = waiting.get()
        if error is not None:
            raise error
        return item

    try:
        yield take
    finally:
        stop.set()
        thread.join(timeout=5)
