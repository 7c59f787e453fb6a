"""Clocks for the host, CUDA and other accelerators, and a fake one for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """`mark()` is cheap enough for the inside of a forward; `seconds(a, b)` may wait for the device."""

    def mark(self) -> Any: ...
    def seconds(self, start: Any, end: Any) -> float: ...
    def synchronize(self) -> None: ...


class HostClock:
    """The clock of a CPU, where a call is done when it returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        pass


class EventClock:
    """CUDA events: a mark does not wait for the device, reading it does."""

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def mark(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        self._torch.cuda.synchronize()


class SyncClock(HostClock):
    """The clock of any other accelerator, which every mark waits for."""

    def mark(self) -> float:
        self.synchronize()
        return time.perf_counter()

    def synchronize(self) -> None:
        import torch

        torch.accelerator.synchronize()


class FakeClock(HostClock):
    """A clock that only moves by `advance`."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def mark(self) -> float:
        return self.now


def clock_for(device: str) -> Clock:
    """The clock for a device: events for CUDA, the host's for a CPU, else synchronization at every mark."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        return EventClock()
    return HostClock() if kind == "cpu" else SyncClock()


def timed(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds of one call, until the device is done with it."""
    clock.synchronize()
    start = clock.mark()
    call()
    end = clock.mark()
    clock.synchronize()
    return clock.seconds(start, end)
