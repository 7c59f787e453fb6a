"""torch.cuda as far as measuring uses it: cards, streams, events and graphs on a clock that tests move."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class FakeCuda:
    """Some cards of one name; tensors stay on the CPU, and `ms` passes only by `work`.

    `recorded` has the card of every event that was recorded, `made` counts events, `captures` and `replays` graphs.
    `held` and `peak` are what is allocated, and was at most since the last reset, in bytes.
    """

    def __init__(self, cards: int = 2) -> None:
        self.held, self.peak, self.resets = 1 << 20, 3 << 20, 0
        self.cards, self.card, self.ms = cards, 0, 0.0
        self.side_stream: Any = None
        self.capturing: Any = None
        self.recorded: list[int] = []
        self.synchronized: list[int] = []
        self.made = self.captures = self.replays = 0
        self.warm_ups: list[Any] = []  # the stream of every piece of work outside a capture
        self.pools: list[Any] = []

    def number(self, device: Any = None) -> int:
        """The card that torch would take `device` for."""
        index = device if isinstance(device, int) else torch.device(device or "cuda").index
        return self.card if index is None else index

    def work(self, ms: float) -> None:
        """What a kernel does: takes its time, now or in every replay."""
        if self.capturing is not None:
            self.capturing.ms += ms
        else:
            self.warm_ups.append(self.side_stream)
            self.ms += ms

    def current_stream(self, device: Any = None) -> Any:
        return self.side_stream or SimpleNamespace(card=self.number(device), wait_stream=lambda other: None)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.card = self.card, self.number(device)
        yield
        self.card = before

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.side_stream = self.side_stream, stream
        yield
        self.side_stream = before

    @contextmanager
    def graph(self, graph: Any, pool: Any = None, stream: Any = None) -> Iterator[None]:
        self.pools.append(pool)
        self.captures += 1
        with self.stream(stream):
            self.capturing = graph
            try:
                yield
            finally:
                self.capturing = None

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this in the place of torch.cuda."""
        fake, cuda = self, torch.cuda

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.cuda_stream = id(self)
                self.card = fake.number(device if torch.device(device or "cuda").type == "cuda" else None)

            def wait_stream(self, other: Any) -> None:
                pass

        class Event:
            def __new__(cls, enable_timing: bool = False, external: bool = False) -> Any:
                fake.made += 1
                return super().__new__(cls)

            def __init__(self, enable_timing: bool = False, external: bool = False) -> None:
                assert enable_timing
                self.external, self.ms = external, None

            def record(self, stream: Any) -> None:
                fake.recorded.append(stream.card)
                if fake.capturing is None:
                    self.ms = fake.ms
                    return
                assert self.external, "an event inside a graph cannot be read"
                fake.capturing.nodes.append((self, fake.capturing.ms))

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Any) -> float:
                return end.ms - self.ms

        class CUDAGraph:
            def __init__(self) -> None:
                self.nodes: list[tuple[Any, float]] = []
                self.ms = 0.0

            def replay(self) -> None:
                fake.replays += 1
                for event, ms in self.nodes:
                    event.ms = fake.ms + ms
                fake.ms += self.ms

            def pool(self) -> Any:
                return ("pool of", self)

        values = {
            "Event": Event, "Stream": Stream, "CUDAGraph": CUDAGraph, "graph": self.graph, "stream": self.stream,
            "device": self.device, "current_stream": self.current_stream, "is_available": lambda: True,
            "device_count": lambda: self.cards, "set_device": lambda device: setattr(self, "card", device),
            "synchronize": lambda device=None: self.synchronized.append(self.number(device)),
            "mem_get_info": lambda device=None: (64 << 30, 80 << 30),
            "get_device_name": lambda device=None: "NVIDIA H100",
            "get_device_properties": lambda device=None: SimpleNamespace(
                uuid=f"card-{self.number(device)}", L2_cache_size=50 << 20, major=9, minor=0
            ),
            "memory_allocated": lambda device=None: self.held,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": lambda device=None: setattr(self, "resets", self.resets + 1),
        }  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(cuda, name, value)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cuda"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: self.cards)


class _TensorsStay(TorchFunctionMode):
    """What asks for a tensor on a GPU gets it on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return func(*map(_here, args), **{name: _here(value) for name, value in (kwargs or {}).items()})


def _here(value: Any) -> Any:
    named = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return "cpu" if named and torch.device(value).type == "cuda" else value


@contextmanager
def fake_cuda(cards: int = 2) -> Iterator[FakeCuda]:
    """The stubs in the place of torch.cuda, for the length of a `with`."""
    with pytest.MonkeyPatch.context() as patch, _TensorsStay():
        fake = FakeCuda(cards)
        fake.patch(patch)
        yield fake


class FakeNvml(ModuleType):
    """pynvml with what a test says it tells; what it is not told, it does not support."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, **told: Any) -> None:
        super().__init__("pynvml")
        self.told, self.uuids = told, list[str]()

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.uuids.append(uuid)
        return uuid

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95"

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def read(handle: str, *arguments: Any) -> Any:
            key = "".join([name.removeprefix("nvmlDeviceGet"), *map(str, arguments)])
            if key not in self.told:
                raise self.NVMLError("not supported")
            value = self.told[key]
            return value() if callable(value) else value

        return read


def with_nvml(monkeypatch: pytest.MonkeyPatch, **told: Any) -> FakeNvml:
    """NVML that tells this: `MigMode=[0, 0]`, `ClockInfo1=1980`, …"""
    nvml = FakeNvml(**told)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def slow(module: nn.Module, cuda: FakeCuda, ms: float, launch_ms: float = 0.0) -> None:
    """The module's kernels take `ms`, and wait `launch_ms` for Python where they are no graph."""
    forward = module.forward

    def later(*args: Any, **kwargs: Any) -> Any:
        cuda.work(ms if cuda.capturing else ms + launch_ms)
        return forward(*args, **kwargs)

    module.forward = later  # type: ignore[method-assign]
