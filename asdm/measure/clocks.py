"""Clocks as values, so that a test can hand in one that it moves itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

# ---------------------------------------------------------------------------------------------- clocks


class Clock(Protocol):
    """`mark()` costs next to nothing inside a forward; `seconds(a, b)` may wait for the device."""

    def mark(self) -> Any: ...
    def seconds(self, start: Any, end: Any) -> float: ...
    def synchronize(self) -> None: ...


class HostClock:
    """A CPU's clock: what was called is done when the call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        pass


class EventClock:
    """CUDA events in the stream: marks do not stop the device, reading them does."""

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
    """Any other accelerator: wait for it at every mark."""

    def mark(self) -> float:
        self.synchronize()
        return time.perf_counter()

    def synchronize(self) -> None:
        import torch

        torch.accelerator.synchronize()


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        pass


def clock_for(device: str) -> Clock:
    """The clock that a device needs: events for CUDA, the host's for a CPU."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        return EventClock()
    return HostClock() if kind == "cpu" else SyncClock()


def timed(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds that one call takes, the device's queue included."""
    clock.synchronize()
    start = clock.mark()
    call()
    end = clock.mark()
    clock.synchronize()
    return clock.seconds(start, end)
