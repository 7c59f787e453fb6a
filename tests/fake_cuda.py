"""torch.cuda as far as measuring uses it: cards, streams, events and graphs on a clock that tests move."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from asdm.models import components, example_inputs, loading


class FakeCuda:
    """Some cards of one name; tensors stay on the CPU, and `ms` passes only by `work`.

    `recorded` has the card of every event that was recorded, `made` counts events, `captures` and `replays` graphs.
    """

    def __init__(self, cards: int = 2) -> None:
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

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> "FakeCuda":
        """Put this in the place of torch.cuda, and keep tensors where they are."""
        fake, cuda = self, torch.cuda

        class Stream:
            def __init__(self, device: Any = None) -> None:
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
        }  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(cuda, name, value)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cuda"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: self.cards)
        for module, name in ((loading, "load_unet"), (example_inputs, "unet_inputs"), (components, "time_calls")):
            monkeypatch.setattr(module, name, _on_the_cpu(getattr(module, name)))
        return self


def _on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        words = ["cpu" if str(word).startswith("cuda") else word for word in args]
        return function(*words, **{k: "cpu" if str(v).startswith("cuda") else v for k, v in kwargs.items()})

    return call


def slow(module: nn.Module, cuda: FakeCuda, ms: float) -> None:
    """The module's kernels take `ms`."""
    forward = module.forward

    def later(*args: Any, **kwargs: Any) -> Any:
        cuda.work(ms)
        return forward(*args, **kwargs)

    module.forward = later  # type: ignore[method-assign]
