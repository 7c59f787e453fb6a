"""The study that all workers of a search share: Optuna keeps its trials, in a journal file of one machine or in
PostgreSQL for workers on many; named locks tell who is alive.

A trial is one attempt at a job. Its worker holds a lock named after it until it ends; the lock is released when the
worker dies, so no clock decides who is alive. Reading and deciding (which jobs are due, which workers died, who takes
what) is done by one worker at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from asdm.utils import console, io, locks
from asdm.utils.console import without_password
from asdm.utils.record import brief
from asdm_prof.analysis.diff import MACHINE
from asdm_prof.search.halving import Attempt, Halving, Job

MISSING = "asdm-prof search needs the packages of the extra 'search'; pip install 'asdm-prof[search]'."
JOURNAL = "study.jsonl"
QUALITY = 1  # the second of a trial's two values; the first is the latency ratio


# ---------------------------------------------------------------------------------------------- named locks


class NamedLocks(Protocol):
    """Locks that the kernel or the server releases when their process dies; `take` says whether it got the lock."""

    def take(self, name: str, shared: bool = False, wait: bool = False) -> bool: ...
    def drop(self, name: str, shared: bool = False) -> None: ...
    def close(self) -> None: ...


@contextmanager
def held(named_locks: NamedLocks, name: str) -> Iterator[None]:
    """Hold a lock exclusively for the block, waiting for it first."""
    named_locks.take(name, wait=True)
    try:
        yield
    finally:
        named_locks.drop(name)


class FileLocks:
    """One file per name, in a folder of one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = io.make_folder(folder)
        self._held: dict[str, int] = {}

    def take(self, name: str, shared: bool = False, wait: bool = False) -> bool:
        with locks.needed(self._folder, "choose an --output on another disk, or share the search by --storage"):
            handle = locks.open_lock(self._folder / f"{name}.lock")
            free = locks.lock(handle, shared, wait)
        if not free:
            os.close(handle)
            return False
        self._held[name] = handle
        return True

    def drop(self, name: str, shared: bool = False) -> None:
        os.close(self._held.pop(name))

    def close(self) -> None:
        for name in list(self._held):
            self.drop(name)


class DatabaseLocks:
    """PostgreSQL's advisory locks of one session; a machine that lost power is noticed within a minute."""

    def __init__(self, url: str, study: str) -> None:
        import psycopg

        self._session = psycopg.connect(url, autocommit=True, connect_timeout=20)
        for name, value in (("idle", 30), ("interval", 10), ("count", 3)):
            self._session.execute(f"set tcp_keepalives_{name} = {value}")
        self._study = study

    def take(self, name: str, shared: bool = False, wait: bool = False) -> bool:
        call = f"pg_{'' if wait else 'try_'}advisory_lock{'_shared' if shared else ''}"
        row = self._session.execute(f"select {call}(%s)", (self._key(name),)).fetchone()
        return wait or bool(row and row[0])

    def drop(self, name: str, shared: bool = False) -> None:
        self._session.execute(f"select pg_advisory_unlock{'_shared' if shared else ''}(%s)", (self._key(name),))

    def close(self) -> None:
        self._session.close()

    def _key(self, name: str) -> int:
        digest = hashlib.sha256(f"asdm-search {self._study} {name}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


# ---------------------------------------------------------------------------------------------- the study


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
                attrs = {
                    "steps": self.halving.steps_until(job.rung),
                    "plan": json.dumps(self.plans[job.candidate], allow_nan=False),
                }
                self.optuna_study.enqueue_trial(asdict(job), user_attrs=attrs)
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

        counts = {"candidate": self.halving.candidates, "rung": self.halving.rungs}
        return {name: IntDistribution(0, count - 1) for name, count in counts.items()}

    def exclusive(self) -> AbstractContextManager[None]:
        """Read and decide while no other worker does."""
        return held(self.locks, "decide")


# ---------------------------------------------------------------------------------------------- opening a study


@contextmanager
def open_study(
    storage: str | None,
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    maximise: bool,
    begin: Callable[[], tuple[Mapping[str, Any], list[dict[str, Any]]]],
    earlier: Mapping[str, Any] = {},
) -> Iterator[SharedStudy]:
    """The study of a search; a new one gets more settings and the candidates' plans from `begin()`.

    `settings` must equal those of an existing study, or what an `earlier` version had for them. Raises ValueError for a
    study of another search, a storage that is not PostgreSQL or does not answer, and where the extra is missing.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ValueError(MISSING) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = database_url(storage) if storage else None
    with _connection_errors(storage):
        named_locks: NamedLocks = (
            DatabaseLocks(url.replace("+psycopg", "", 1), name) if url else FileLocks(folder / "locks")
        )
        try:
            with held(named_locks, "decide"):
                optuna_study = optuna.create_study(
                    study_name=name,
                    storage=optuna.storages.RDBStorage(url) if url else _journal(folder / JOURNAL),
                    sampler=optuna.samplers.RandomSampler(),  # nothing is sampled: every trial is enqueued
                    directions=("minimize", "maximize" if maximise else "minimize"),
                    load_if_exists=True,
                )
                if "plans" not in optuna_study.user_attrs:
                    more_settings, plans = begin()
                    optuna_study.set_user_attr("settings", {**settings, **more_settings})
                    optuna_study.set_user_attr("plans", plans)  # last: it marks the study as complete
                known = optuna_study.user_attrs["settings"]
                _check_same(settings, known, name, storage or str(folder), earlier)
            study = SharedStudy(optuna_study, named_locks, known, tuple(optuna_study.user_attrs["plans"]), maximise)
            named_locks.take(f"host-{study.host}", shared=True, wait=True)
            yield study
        finally:
            named_locks.close()


def _check_same(
    settings: Mapping[str, Any], known: Mapping[str, Any], name: str, place: str, earlier: Mapping[str, Any]
) -> None:
    """Raises ValueError naming the first setting in which two searches differ."""
    for key, value in settings.items():
        if known.get(key) == value or (key in earlier and known.get(key) == earlier[key]):
            continue
        study, theirs, ours = f"the study {name} in {without_password(place)}", brief(known.get(key)), brief(value)
        if key in MACHINE:
            raise ValueError(
                f"{study} is measured on machines whose {key} is {theirs}, and this machine's is {ours}; latencies of "
                "different machines cannot be compared."
            )
        raise ValueError(
            f"{study} belongs to another search: its {key} is {theirs}, not {ours}; use the same value, or choose "
            "another --study or --output."
        )


def database_url(storage: str) -> str:
    """A PostgreSQL URL with the driver that the extra installs; raises ValueError for any other storage."""
    scheme, separator, rest = storage.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ValueError(
            f"storage must look like postgresql://USER@HOST/DATABASE, got {without_password(storage)!r}; leave it out "
            "to use a file."
        )
    return f"postgresql+psycopg://{rest}"


@contextmanager
def _connection_errors(storage: str | None) -> Iterator[None]:
    """Turns the errors of a database that does not answer into one sentence."""
    import optuna

    errors: tuple[type[Exception], ...] = (optuna.exceptions.StorageInternalError,)
    if storage:
        try:
            import psycopg
            import sqlalchemy
        except ModuleNotFoundError:
            raise ValueError(MISSING) from None
        errors = (*errors, psycopg.Error, sqlalchemy.exc.SQLAlchemyError)
    try:
        yield
    except errors as error:
        reason = console.first_line(error.__cause__ or error)
        place = without_password(storage or "of the study")
        raise ValueError(f"the storage {place} does not answer: {reason}.") from None


def _journal(path: Path) -> Any:
    """A journal on this machine's disk, whose lock does not outlive a killed worker."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    handle = locks.open_lock(path.with_name(f"{path.name}.lock"))
    lock: Any = SimpleNamespace(acquire=partial(locks.lock, handle), release=partial(locks.unlock, handle))

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            locks.lock(handle)
            try:
                drop_torn_line(path)
            finally:
                locks.unlock(handle)
            with io.disk_errors(path, every=True):
                super().append_logs(logs)

    return JournalStorage(Journal(str(path), lock))


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed worker left half-written: with another behind it, none could be read."""
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        at = end
        while at:  # back to the last line feed, a block at a time
            start = max(at - 4096, 0)
            stream.seek(start)
            if (line_feed := stream.read(at - start).rfind(b"\n")) >= 0:
                at = start + line_feed + 1
                break
            at = start
        if at != end:
            stream.truncate(at)
