"""The UNet as one CUDA graph: seconds of the GPU itself, without its waits for Python.

The forward is captured once, with its hooks, and replayed; the timing events are nodes of the graph, so a part's time
is that of its kernels. The bare call is a second graph without events inside, in the same memory.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from asdm.measure.clocks import CaptureClock, Clock
from asdm.measure.marks import PartMarks
from asdm.unet.blocks import Part
from asdm.utils import console

NEEDS_WEIGHTS, HOOKED = True, True
WEIGHT_COPIES, ACTIVATION_COPIES = 0, 1
DTYPES, DEVICES = ("fp32", "bf16", "fp16"), ("cuda",)
WARM_UPS = 3  # calls before a capture, in which the libraries allocate and choose their kernels


def check(dtype: str, device: str) -> None:
    """Raises ValueError where events cannot be recorded inside a graph."""
    check_events("cudagraph")


def check_events(backend: str) -> None:
    """Raises ValueError, about a `backend`, where events cannot be recorded inside a graph."""
    if torch.version.hip:
        raise ValueError(f"{backend} reads events inside a CUDA graph, which ROCm does not offer; choose eager.")
    if "external" not in inspect.signature(torch.cuda.Event.__new__).parameters:
        raise ValueError(
            f"{backend} reads events inside a CUDA graph, which torch can from 2.9 on; this is {torch.__version__}."
        )


class Replay:
    """A call captured as a CUDA graph with events at both ends and around parts; `beside` shares memory and stream.

    Raises ValueError if the call cannot be captured: it waits for the GPU, say.
    """

    def __init__(
        self, call: Callable[[], Any], parts: Sequence[Part], device: torch.device, beside: "Replay | None" = None
    ) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()
        self.stream: torch.cuda.Stream = beside.stream if beside else torch.cuda.Stream(device)
        self.clock = CaptureClock(str(device))
        self.marks = PartMarks(parts, self.clock)
        self._warm_up(call)
        pool = beside.graph.pool() if beside else None
        try:
            with torch.cuda.graph(self.graph, pool=pool, stream=self.stream), self.marks.hooked():
                self.start = self.clock.mark()
                self.out = call()
                self.end = self.clock.mark()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = console.first_line(error.__context__ or error)
            raise ValueError(f"this forward cannot become a CUDA graph: {reason}; choose --backend eager.") from error

    def _warm_up(self, call: Callable[[], Any]) -> None:
        """Call it on the stream of the capture, where a first call may still allocate and synchronise."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                call()
        current.wait_stream(self.stream)

    def seconds(self) -> float:
        """Seconds of one replay, from its first node to its last."""
        self.graph.replay()
        self.clock.synchronize()
        return self.clock.seconds(self.start, self.end)


class CudaGraphSession:
    """Two graphs of one UNet in the same memory: one bare, and one with its parts between events, made when asked."""

    attribution = None

    def __init__(self, unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part], clock: Clock) -> None:
        self.call, self.parts = partial(unet, **inputs), parts
        self.device = next(unet.parameters()).device
        self.bare = Replay(self.call, (), self.device)

    @cached_property
    def hooked(self) -> Replay:
        return Replay(self.call, self.parts, self.device, beside=self.bare)

    def run(self) -> float:
        return self.bare.seconds()

    def output(self) -> torch.Tensor:
        self.bare.seconds()
        return self.bare.out[0].clone()

    def run_parts(self) -> tuple[float, dict[str, float]]:
        whole_s = self.hooked.seconds()
        return whole_s, self.hooked.marks.seconds()


open_session = CudaGraphSession
