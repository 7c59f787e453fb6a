"""Successive halving as plain data: what is to be trained next, given what was tried (Jamieson & Talwalkar 2016).

Rungs are synchronous: a rung begins when all of the one before has ended, its better half goes on, twice as long. What
is due follows from the attempts alone, so that whoever comes along may take it up, and nothing is lost with a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FATE = Literal["open", "done", "diverged", "left", "died"]
DEATHS = 3  # workers that one job may kill before it is given up


@dataclass(frozen=True, order=True)
class Job:
    """Train a candidate to the end of a rung, and measure it."""

    rung: int
    candidate: int


@dataclass(frozen=True)
class Attempt:
    """One trial of a job: under way, or how it ended; `over` is how far its latency lies above the budget."""

    job: Job
    fate: FATE
    over: float = 0.0
    loss: float = 0.0  # the quality that ranks, less is better

    @property
    def rank(self) -> tuple[float, float, int]:
        """Within the budget first, then by quality; ties go by number, so that everybody ranks alike."""
        return (max(self.over, 0.0), self.loss, self.job.candidate)


@dataclass(frozen=True)
class Halving:
    """How many candidates train how long: `steps` are those of all together."""

    candidates: int
    rungs: int
    steps: int

    def __post_init__(self) -> None:
        for name in ("candidates", "rungs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is none; choose 1 or more.")
        if self.candidates < 2 ** (self.rungs - 1):
            most = self.candidates.bit_length()
            raise ValueError(
                f"{self.candidates} candidates cannot be halved {self.rungs - 1} times; choose --rungs {most} or fewer."
            )
        if self.first < 1:
            raise ValueError(f"steps {self.steps} are too few for all; choose {self._share} or more.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Candidates in each rung."""
        return tuple(-(-self.candidates // 2**rung) for rung in range(self.rungs))

    @property
    def first(self) -> int:
        """Steps of the first rung."""
        return self.steps // self._share

    @property
    def _share(self) -> int:
        """Steps of all together where the first rung has one."""
        return sum(size * self._more(rung) for rung, size in enumerate(self.sizes))

    @staticmethod
    def _more(rung: int) -> int:
        return 2**rung - (2 ** (rung - 1) if rung else 0)

    def until(self, rung: int) -> int:
        """Steps that a candidate has trained at the end of a rung."""
        return self.first * 2**rung

    def steps_of(self, job: Job) -> int:
        """Steps that a job adds."""
        return self.first * self._more(job.rung)

    @property
    def longest(self) -> int:
        """Steps of the last rung's students."""
        return self.until(self.rungs - 1)

    # ------------------------------------------------------------------------------------------ what is due

    def field(self, rung: int, attempts: Sequence[Attempt]) -> tuple[int, ...] | None:
        """The candidates of a rung, best first; None where the rung before is still open."""
        if rung == 0:
            return tuple(range(self.candidates))
        before = self.field(rung - 1, attempts)
        if before is None or not all(settled(Job(rung - 1, one), attempts) for one in before):
            return None
        return tuple(one.job.candidate for one in ranked(rung - 1, attempts))[: self.sizes[rung]]

    def due(self, attempts: Sequence[Attempt]) -> list[Job]:
        """Jobs that nobody has in hand and that have not ended, in the order in which they are to be done."""
        jobs = [Job(rung, one) for rung in range(self.rungs) for one in self.field(rung, attempts) or ()]
        taken = {one.job for one in attempts if one.fate == "open"}
        return sorted(job for job in jobs if job not in taken and not settled(job, attempts))

    def finished(self, attempts: Sequence[Attempt]) -> bool:
        """Whether every rung has ended."""
        last = self.field(self.rungs - 1, attempts)
        return last is not None and all(settled(Job(self.rungs - 1, one), attempts) for one in last)

    def steps_left(self, attempts: Sequence[Attempt]) -> int:
        """Training steps that no attempt has done yet."""
        done = {one.job for one in attempts if one.fate in ("done", "diverged")}
        return max(self.first * self._share - sum(self.steps_of(job) for job in done), 0)


def settled(job: Job, attempts: Sequence[Attempt]) -> bool:
    """Whether a job has ended: done, diverged, or given up after it killed too many workers."""
    mine = [one.fate for one in attempts if one.job == job]
    return "done" in mine or "diverged" in mine or mine.count("died") >= DEATHS


def ranked(rung: int, attempts: Sequence[Attempt]) -> list[Attempt]:
    """What was measured in a rung, best first."""
    return sorted((one for one in attempts if one.job.rung == rung and one.fate == "done"), key=lambda one: one.rank)
