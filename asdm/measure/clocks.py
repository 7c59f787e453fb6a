"""Clocks for the host, CUDA and other accelerators, and a fake one for tests."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from asdm.records.measurement import device_kind


class Clock(Protocol):
    """`mark()` is cheap enough for the inside of a forward; `seconds(a, b)` may wait for the device.

    A mark that is no longer needed may be given to `mark` to be used again.
    """

    def mark(self, again: Any = None) -> Any: ...
    def seconds(self, start: Any, end: Any) -> float: ...
    def synchronize(self) -> None: ...


class HostClock:
    """The clock of a CPU, where a call is done when it returns."""

    def mark(self, again: Any = None) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        pass


class EventClock:
    """CUDA events of one device: a mark does not wait for it, reading it does."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda, self.device = torch.cuda, device

    def mark(self, again: Any = None) -> Any:
        event = self.new_event() if again is None else again
        event.record(self._cuda.current_stream(self.device))
        return event

    def new_event(self) -> Any:
        return self._cuda.Event(enable_timing=True)

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        self._cuda.synchronize(self.device)


class CaptureClock(EventClock):
    """Events that a CUDA graph records again at every replay; they are read after it."""

    def new_event(self) -> Any:
        return self._cuda.Event(enable_timing=True, external=True)


class SyncClock(HostClock):
    """The clock of any other accelerator, which every mark waits for."""

    def mark(self, again: Any = None) -> float:
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

    def mark(self, again: Any = None) -> float:
        return self.now


def clock_for(device: str) -> Clock:
    """The clock for a device: events for CUDA, the host's for a CPU, else synchronization at every mark."""
    kind = device_kind(device)
    if kind == "cuda":
        return EventClock(device)
    return HostClock() if kind == "cpu" else SyncClock()


def timed(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds of one call, until the device is done with it."""
    clock.synchronize()
    start = clock.mark()
    call()
    end = clock.mark()
    clock.synchronize()
    return clock.seconds(start, end)
