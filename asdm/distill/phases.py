"""What a step's time goes into: waiting for data, encoding, computing, and the rest."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

from asdm.measure.clocks import Clock

DATA, ENCODE, COMPUTE, REST = PHASES = ("data", "encode", "compute", "rest")


class StepPhases:
    """Seconds of each phase, between marks on the device's own clock: a call that returns early is not done yet.

    Marks are read a step later, when the device has passed them, so that reading does not wait.
    """

    def __init__(self, clock: Clock) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        self._marks: list[tuple[str, Any]] = []  # of the step in progress; the first one closes the step before
        self._passed: list[tuple[str, Any]] = []

    def enter(self, phase: str) -> None:
        """End the phase before this one."""
        self._marks.append((phase, self._clock.mark()))

    def end_step(self) -> None:
        """Everything until the next phase is the rest; reads the step before this one."""
        self.enter(REST)
        self._read(self._passed + self._marks[:1])
        self._passed, self._marks = self._marks, []

    def finish(self) -> None:
        """Read what is left; the last mark ends it."""
        self._read(self._passed + self._marks)
        self._passed = self._marks = []

    def shares(self) -> dict[str, float]:
        """Share of each phase in the time so far."""
        total = sum(self.seconds.values())
        return {phase: self.seconds[phase] / total for phase in PHASES} if total else {}

    def _read(self, marks: list[tuple[str, Any]]) -> None:
        for (phase, start), (_, end) in pairwise(marks):
            self.seconds[phase] += self._clock.seconds(start, end)
