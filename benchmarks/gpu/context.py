"""What a stage knows: where it runs, whether it is only tried out, and what earlier stages found."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from asdm.measure.device import is_gpu
from asdm.utils.record import Record
from benchmarks.gpu.records import Files

R = TypeVar("R", bound=Record)
EAGER, GRAPH = "eager", "cudagraph"


class Refused(ValueError):
    """What this machine cannot do; not counted as a failure."""


@dataclass(frozen=True)
class Part:
    """One measurement of a stage, by the name that later stages find it by."""

    name: str
    measure: Callable[[], Record]
    after: tuple[str, ...] = ()  # parts that it is made of: measured again, they make it old


@dataclass(frozen=True)
class Context:
    """The run that a stage belongs to; with `smoke`, everything is small and short."""

    files: Files
    device: str
    family: str  # what stands for SD 1.5
    smoke: bool
    work: Path  # a folder that goes when the stage ends
    command: str

    @property
    def dtype(self) -> str:
        return "fp16" if is_gpu(self.device) else "fp32"

    @property
    def executions(self) -> tuple[str, ...]:
        """Where a UNet is measured in more than one way."""
        return (EAGER, GRAPH)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Where a GPU's own time is wanted; a CPU tries the same code in eager, and refuses the graph."""
        return (GRAPH,) if is_gpu(self.device) else self.executions

    @property
    def best(self) -> str:
        """The execution that plans are made for."""
        return GRAPH if is_gpu(self.device) else EAGER

    def seconds(self, budget_s: float) -> float:
        """A time budget."""
        return min(budget_s, 0.5) if self.smoke else budget_s

    def require_gpu(self, reason: str) -> None:
        """Raise Refused on anything but a GPU."""
        if not is_gpu(self.device):
            raise Refused(f"{reason}, and this ran on {self.device}.")

    def require_backend(self, name: str) -> None:
        """Raise Refused, in the backend's own words, where it does not run here."""
        from asdm.measure import backends

        try:
            backends.load(name, self.dtype, self.device)
        except ValueError as error:
            raise Refused(str(error)) from None

    def earlier(self, stage: str, part: str, kind: type[R]) -> R:
        """The result of an earlier stage."""
        return self.files.result(stage, part, kind)
