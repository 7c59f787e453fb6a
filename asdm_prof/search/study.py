"""The study that all workers of a search share: Optuna keeps its trials, named locks tell who is alive.

A trial is one attempt at a job. Its worker holds a lock named after it until it ends; the lock is released when the
worker dies, so no clock decides who is alive. Reading and deciding (which jobs are due, which workers died, who takes
what) is done by one worker at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from asdm_prof.search.halving import Attempt, Halving, Job
from asdm_prof.search.named_locks import NamedLocks, held

RATIO, QUALITY = 0, 1  # a trial's two values


def host_id() -> str:
    """This machine in eight letters, the same at every start: a hash, so that its name stays private."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@dataclass
class Claim:
    """A job that this worker has taken, with its trial."""

    job: Job
    trial: Any

    def note(self, **values: Any) -> None:
        """Store values with the trial, as plain JSON."""
        for name, value in values.items():
            self.trial.set_user_attr(name, value)


@dataclass
class SharedStudy:
    """An Optuna study, the locks beside it, the search's settings and its candidates' plans."""

    optuna_study: Any
    locks: NamedLocks
    settings: dict[str, Any]
    plans: tuple[dict[str, Any], ...]
    maximise: bool  # whether more of the ranking metric is better
    host: str = field(default_factory=host_id)

    @property
    def halving(self) -> Halving:
        return Halving(self.settings["candidates"], self.settings["rungs"], self.settings["steps"])

    def trials(self) -> list[Any]:
        """Optuna's trials, all of them."""
        return list(self.optuna_study.get_trials(deepcopy=False))

    def attempts(self) -> list[Attempt]:
        """Every trial so far, as plain data."""
        return [self._attempt(trial) for trial in self.trials()]

    def measured_trials(self) -> list[Any]:
        """Optuna's trials that ended with a measurement."""
        return [trial for trial in self.trials() if trial.state.name == "COMPLETE"]

    def _attempt(self, trial: Any) -> Attempt:
        parameters = trial.system_attrs.get("fixed_params", {}) | trial.params
        job = Job(parameters["rung"], parameters["candidate"])
        if trial.state.name in ("WAITING", "RUNNING"):
            return Attempt(job, "open")
        if trial.state.name == "COMPLETE":
            quality = trial.values[QUALITY]
            over_budget = trial.user_attrs["latency"]["ratio"]["low"] - self.settings["budget_ratio"]
            return Attempt(job, "done", over_budget, -quality if self.maximise else quality)
        return Attempt(job, trial.user_attrs.get("fate", "died"))

    # ------------------------------------------------------------------------------------------ taking and ending jobs

    def claim(self, has_checkpoint: Callable[[Job], bool]) -> Claim | None:
        """Take the next job for this worker; None where there is none for now.

        A job goes to a worker that has the candidate's checkpoint, or to any where that checkpoint's machine has no
        worker left. Trials whose worker has died are ended first, so that their jobs are due again.
        """
        with self.exclusive():
            self._fail_abandoned_trials()
            if not any(trial.state.name == "WAITING" for trial in self.trials()):
                due = self.halving.due(self.attempts())
                job = next((job for job in due if self._may_take(job, has_checkpoint)), None)
                if job is None:
                    return None
                self.optuna_study.enqueue_trial(
                    {"candidate": job.candidate, "rung": job.rung},
                    user_attrs={
                        "steps": self.halving.steps_until(job.rung),
                        "plan": json.dumps(self.plans[job.candidate]),
                    },
                )
            # A worker that died between the two calls has left its trial waiting: `ask` gives that one.
            trial = self.optuna_study.ask(self._distributions())
            self.locks.take(f"trial-{trial.number}")
            claim = Claim(Job(trial.params["rung"], trial.params["candidate"]), trial)
            claim.note(host=self.host, process=os.getpid())
            return claim

    def complete(self, claim: Claim, ratio: float, quality: float) -> None:
        """End a trial with its measurement."""
        with self.exclusive():
            self.optuna_study.tell(claim.trial, (ratio, quality))
            self.locks.drop(f"trial-{claim.trial.number}")

    def fail(self, claim: Claim, fate: str, reason: str) -> None:
        """End a trial without a result: `diverged` settles its job too, `left` makes it due again."""
        from optuna.trial import TrialState

        with self.exclusive():
            claim.note(fate=fate, why=reason)
            self.optuna_study.tell(claim.trial, state=TrialState.FAIL)
            self.locks.drop(f"trial-{claim.trial.number}")

    def _fail_abandoned_trials(self) -> None:
        """End the trials whose workers no longer hold their locks."""
        from optuna.trial import TrialState

        for trial in self.trials():
            if trial.state.name == "RUNNING" and self._is_free(f"trial-{trial.number}"):
                self.optuna_study.tell(trial.number, state=TrialState.FAIL)

    def _may_take(self, job: Job, has_checkpoint: Callable[[Job], bool]) -> bool:
        if job.rung == 0 or has_checkpoint(job):
            return True
        trained = [trial for trial in self.measured_trials() if trial.params["candidate"] == job.candidate]
        last = max(trained, key=lambda trial: trial.params["rung"])
        host = last.user_attrs["host"]
        return host == self.host or self._is_free(f"host-{host}")

    def _is_free(self, name: str) -> bool:
        """Whether no process holds a lock; this one must not."""
        if not self.locks.take(name):
            return False
        self.locks.drop(name)
        return True

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import IntDistribution

        return {
            "candidate": IntDistribution(0, self.halving.candidates - 1),
            "rung": IntDistribution(0, self.halving.rungs - 1),
        }

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Read and decide while no other worker does."""
        with held(self.locks, "decide"):
            yield
