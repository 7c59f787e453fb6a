"""Marks of a clock around the parts of a UNet's forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from asdm.measure.clocks import Clock
from asdm.unet.blocks import Part, hooked


class _Series:
    """A clock's marks at one place, in the order of one call; the next call uses them again."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.used = clock, 0
        self.marks: list[Any] = []

    def add(self) -> None:
        if self.used == len(self.marks):
            self.marks.append(self.clock.mark())
        else:
            self.marks[self.used] = self.clock.mark(self.marks[self.used])
        self.used += 1


class PartMarks:
    """Marks around every module of every part, made in the first call and used again in each later one."""

    def __init__(self, parts: Sequence[Part], clock: Clock) -> None:
        self.parts, self.clock = parts, clock
        self.starts, self.ends = ({part.fqn: _Series(clock) for part in parts} for _ in range(2))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Mark the forward of the UNet that is called in the `with`."""
        for series in (*self.starts.values(), *self.ends.values()):
            series.used = 0
        with hooked(self.parts, lambda fqn: self.starts[fqn].add(), lambda fqn: self.ends[fqn].add()):
            yield

    def seconds(self) -> dict[str, float]:
        """Seconds of each part that ran in the last such call, by fqn."""
        return {
            fqn: sum(map(self.clock.seconds, starts.marks[: starts.used], self.ends[fqn].marks))
            for fqn, starts in self.starts.items()
            if starts.used
        }
