"""Successive halving as plain data: which jobs are due after the attempts so far (Jamieson & Talwalkar 2016).

Rungs are synchronous: a rung begins when every job of the one before has ended, and its better half trains on, twice as
long. Due jobs follow from the attempts alone, so any worker can take them up and a dead worker loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FATE = Literal["open", "done", "diverged", "left", "died"]
MAX_DEATHS = 3  # workers that may die on one job before it is given up


@dataclass(frozen=True, order=True)
class Job:
    """Train a candidate to the end of a rung, and measure it."""

    rung: int
    candidate: int


@dataclass(frozen=True)
class Attempt:
    """One trial of a job: under way, or how it ended."""

    job: Job
    fate: FATE
    over_budget: float = 0.0  # measured latency ratio minus the budget
    loss: float = 0.0  # the ranking metric, lower is better

    @property
    def rank(self) -> tuple[float, float, int]:
        """Within the budget first, then by quality; ties go by number, so that all workers rank alike."""
        return (max(self.over_budget, 0.0), self.loss, self.job.candidate)


@dataclass(frozen=True)
class Halving:
    """How many candidates train how long; `steps` is the total over all candidates."""

    candidates: int
    rungs: int
    steps: int

    def __post_init__(self) -> None:
        for name in ("candidates", "rungs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.candidates < 2 ** (self.rungs - 1):
            most = self.candidates.bit_length()
            rungs = f"--rungs {most} or fewer" if most > 1 else "--rungs 1"
            times = f"{self.rungs - 1} time{'s' if self.rungs > 2 else ''}"
            many = f"{self.candidates} candidate{'s' if self.candidates > 1 else ''}"
            raise ValueError(f"{many} cannot be halved {times}; choose {rungs}.")
        if self.first_steps < 1:
            raise ValueError(
                f"steps must be at least {self._least_steps} for {self.candidates} candidates in {self.rungs} rungs, "
                f"got {self.steps}."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Candidates in each rung."""
        return tuple(-(-self.candidates // 2**rung) for rung in range(self.rungs))

    @property
    def first_steps(self) -> int:
        """Steps of each candidate in the first rung."""
        return self.steps // self._least_steps

    @property
    def _least_steps(self) -> int:
        """Total steps where the first rung trains for one."""
        return sum(size * self._units(rung) for rung, size in enumerate(self.sizes))

    @staticmethod
    def _units(rung: int) -> int:
        """Steps that a rung adds to a candidate, in steps of the first rung."""
        return 2 ** max(rung - 1, 0)

    def steps_until(self, rung: int) -> int:
        """Steps that a candidate has trained at the end of a rung."""
        return self.first_steps * 2**rung

    def steps_of(self, job: Job) -> int:
        """Steps that a job adds."""
        return self.first_steps * self._units(job.rung)

    @property
    def final_steps(self) -> int:
        """Steps of the last rung's students."""
        return self.steps_until(self.rungs - 1)

    # ------------------------------------------------------------------------------------------ due jobs

    def candidates_in(self, rung: int, attempts: Sequence[Attempt]) -> tuple[int, ...] | None:
        """The candidates of a rung, best first; None while the rung before is open."""
        if rung == 0:
            return tuple(range(self.candidates))
        before = self.candidates_in(rung - 1, attempts)
        if before is None or not all(settled(Job(rung - 1, candidate), attempts) for candidate in before):
            return None
        return tuple(attempt.job.candidate for attempt in ranked(rung - 1, attempts))[: self.sizes[rung]]

    def due(self, attempts: Sequence[Attempt]) -> list[Job]:
        """Jobs that are neither under way nor settled, in the order in which to do them."""
        jobs = [Job(rung, one) for rung in range(self.rungs) for one in self.candidates_in(rung, attempts) or ()]
        under_way = {attempt.job for attempt in attempts if attempt.fate == "open"}
        return sorted(job for job in jobs if job not in under_way and not settled(job, attempts))

    def finished(self, attempts: Sequence[Attempt]) -> bool:
        """Whether every rung has ended."""
        last = self.candidates_in(self.rungs - 1, attempts)
        return last is not None and all(settled(Job(self.rungs - 1, candidate), attempts) for candidate in last)

    def steps_left(self, attempts: Sequence[Attempt]) -> int:
        """Training steps that no attempt has finished yet."""
        ended = {attempt.job for attempt in attempts if attempt.fate in ("done", "diverged")}
        return max(self.first_steps * self._least_steps - sum(self.steps_of(job) for job in ended), 0)


def settled(job: Job, attempts: Sequence[Attempt]) -> bool:
    """Whether a job has ended: done, diverged, or given up after too many workers died on it."""
    fates = [attempt.fate for attempt in attempts if attempt.job == job]
    return "done" in fates or "diverged" in fates or fates.count("died") >= MAX_DEATHS


def ranked(rung: int, attempts: Sequence[Attempt]) -> list[Attempt]:
    """The measured attempts of a rung, best first."""
    measured = (attempt for attempt in attempts if attempt.job.rung == rung and attempt.fate == "done")
    return sorted(measured, key=lambda attempt: attempt.rank)
