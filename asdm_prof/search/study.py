"""The search's memory: an Optuna study that workers share, in a file of one machine or in PostgreSQL for many.

A trial is one attempt at a job. Who takes one holds a lock of its name until it has ended, a file's or the database's
own: both are dropped by kernel and server when their holder dies, so that no clock decides who is alive. Whatever is
read and then decided (what is due, who has died, who takes what) is decided by one worker at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from asdm.utils import io
from asdm.utils import locks as host
from asdm_prof.analysis.diff import MACHINE
from asdm_prof.search.halving import Attempt, Halving, Job

MISSING = "asdm-prof search needs the packages of the extra 'search'; pip install 'asdm-prof[search]'."
JOURNAL = "study.jsonl"
RATIO, QUALITY = 0, 1  # a trial's two values


def here() -> str:
    """This machine in a few letters, the same at every start: a hash of its name, which stays unknown."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


# ---------------------------------------------------------------------------------------------- locks by name


class Locks(Protocol):
    """Locks that end with whoever holds them."""

    def take(self, name: str, shared: bool = False, wait: bool = False) -> bool: ...
    def drop(self, name: str, shared: bool = False) -> None: ...
    def close(self) -> None: ...


@contextmanager
def held(locks: Locks, name: str) -> Iterator[None]:
    """Nobody else has the lock in the block; waits for it."""
    locks.take(name, wait=True)
    try:
        yield
    finally:
        locks.drop(name)


class FileLocks:
    """A file for each name, in one folder of one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = io.make_folder(folder)
        self._held: dict[str, int] = {}

    def take(self, name: str, shared: bool = False, wait: bool = False) -> bool:
        handle = host.open_lock(self._folder / f"{name}.lock")
        if not host.lock(handle, shared, wait):
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
        told = hashlib.sha256(f"asdm-search {self._study} {name}".encode()).digest()
        return int.from_bytes(told[:8], "big", signed=True)


# ---------------------------------------------------------------------------------------------- the study


@dataclass
class Claim:
    """A job that this worker has in hand, with its trial."""

    job: Job
    trial: Any

    def note(self, **found: Any) -> None:
        """Keep what was found, as plain JSON, with the trial."""
        for name, value in found.items():
            self.trial.set_user_attr(name, value)


@dataclass
class Memory:
    """A study, the locks beside it, and what its search is."""

    study: Any
    locks: Locks
    settings: dict[str, Any]
    plans: tuple[dict[str, Any], ...]
    maximise: bool  # the quality that ranks
    host: str = field(default_factory=here)

    @property
    def halving(self) -> Halving:
        return Halving(self.settings["candidates"], self.settings["rungs"], self.settings["steps"])

    def attempts(self) -> list[Attempt]:
        """Every trial so far, as plain data."""
        return [self._attempt(trial) for trial in self.study.get_trials(deepcopy=False)]

    def done(self) -> list[Any]:
        """Optuna's trials that were measured."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    def _attempt(self, trial: Any) -> Attempt:
        told = trial.system_attrs.get("fixed_params", {}) | trial.params
        job = Job(told["rung"], told["candidate"])
        if trial.state.name in ("WAITING", "RUNNING"):
            return Attempt(job, "open")
        if trial.state.name == "COMPLETE":
            quality = trial.values[QUALITY]
            over = trial.user_attrs["latency"]["ratio"]["low"] - self.settings["budget_ratio"]
            return Attempt(job, "done", over, -quality if self.maximise else quality)
        return Attempt(job, trial.user_attrs.get("fate", "died"))

    # ------------------------------------------------------------------------------------------ taking and ending

    def claim(self, has: Callable[[Job], bool]) -> Claim | None:
        """The next job for this worker, or None where there is none for now.

        A job goes to who has the candidate's checkpoint (`has`), or to anybody where its machine has no worker left.
        Trials whose worker has died are ended first, so that their jobs are due again.
        """
        with self.alone():
            self._bury()
            attempts = self.attempts()
            if not any(trial.state.name == "WAITING" for trial in self.study.get_trials(deepcopy=False)):
                job = next((job for job in self.halving.due(attempts) if self._may(job, has)), None)
                if job is None:
                    return None
                plan = self.plans[job.candidate]
                self.study.enqueue_trial(
                    {"candidate": job.candidate, "rung": job.rung},
                    user_attrs={"steps": self.halving.until(job.rung), "plan": json.dumps(plan)},
                )
            trial = self.study.ask(self._distributions())  # what waits, if it was left by a worker who died there
            self.locks.take(f"trial-{trial.number}")
            claim = Claim(Job(trial.params["rung"], trial.params["candidate"]), trial)
            claim.note(host=self.host, process=os.getpid())
            return claim

    def end(self, claim: Claim, ratio: float, quality: float) -> None:
        """A job is done."""
        with self.alone():
            self.study.tell(claim.trial, (ratio, quality))
            self.locks.drop(f"trial-{claim.trial.number}")

    def give_up(self, claim: Claim, fate: str, why: str) -> None:
        """A trial ends without a result: `diverged` ends its job too, after `left` it is due again."""
        from optuna.trial import TrialState

        with self.alone():
            claim.note(fate=fate, why=why)
            self.study.tell(claim.trial, state=TrialState.FAIL)
            self.locks.drop(f"trial-{claim.trial.number}")

    def _bury(self) -> None:
        """End the trials whose workers hold no lock any more."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._free(f"trial-{trial.number}"):
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _may(self, job: Job, has: Callable[[Job], bool]) -> bool:
        if job.rung == 0 or has(job):
            return True
        trained = [trial for trial in self.done() if trial.params["candidate"] == job.candidate]
        last = max(trained, key=lambda trial: trial.params["rung"])
        where = last.user_attrs["host"]
        return where == self.host or self._free(f"host-{where}")

    def _free(self, name: str) -> bool:
        """Whether nobody holds a lock; who asks holds none of this name."""
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
    def alone(self) -> Iterator[None]:
        """One worker at a time."""
        with held(self.locks, "decide"):
            yield


# ---------------------------------------------------------------------------------------------- opening it


@contextmanager
def opened(
    storage: str | None,
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    maximise: bool,
    begin: Callable[[], tuple[Mapping[str, Any], list[dict[str, Any]]]],
) -> Iterator[Memory]:
    """The study of a search: begun with `begin()` (more settings, and the candidates' plans) or gone on with.

    `settings` must be those of the study. Raises ValueError for a study of another search, a storage that is none or
    does not answer, or where the extra is missing.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ValueError(MISSING) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = normalised(storage) if storage else None
    with _reached(storage):
        locks: Locks = DatabaseLocks(_plain(url), name) if url else FileLocks(folder / "locks")
        try:
            with held(locks, "decide"):
                study = optuna.create_study(
                    study_name=name,
                    storage=optuna.storages.RDBStorage(url) if url else _journal(folder / JOURNAL),
                    sampler=optuna.samplers.RandomSampler(),  # there is nothing to sample: candidates are planned
                    directions=("minimize", "maximize" if maximise else "minimize"),
                    load_if_exists=True,
                )
                if "plans" not in study.user_attrs:
                    found, plans = begin()
                    study.set_user_attr("settings", {**settings, **found})
                    study.set_user_attr("plans", plans)  # last: with it the study is whole
                known = study.user_attrs["settings"]
                _same(settings, known, name, storage or str(folder))
            memory = Memory(study, locks, known, tuple(study.user_attrs["plans"]), maximise)
            locks.take(f"host-{memory.host}", shared=True, wait=True)
            yield memory
        finally:
            locks.close()


def _same(wanted: Mapping[str, Any], known: Mapping[str, Any], name: str, where: str) -> None:
    """Raises ValueError naming the first thing in which two searches differ."""
    for key, value in wanted.items():
        if known.get(key) == value:
            continue
        if key in MACHINE:
            raise ValueError(
                f"the study {name} in {hidden(where)} is measured on machines whose {key} is "
                f"{io.brief(known.get(key))}, and this one's is {io.brief(value)}; "
                "latencies of unlike machines do not compare."
            )
        raise ValueError(
            f"the study {name} in {hidden(where)} is another search's: its {key} is {io.brief(known.get(key))}, and "
            f"not {io.brief(value)}; give the same, or name another --study or --output."
        )


def normalised(storage: str) -> str:
    """A PostgreSQL URL with the driver that the extra installs; raises ValueError for any other storage."""
    scheme, separator, rest = storage.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ValueError(f"the storage {hidden(storage)!r} is none; give postgresql://USER@HOST/DATABASE, or none.")
    return f"postgresql+psycopg://{rest}"


def _plain(url: str) -> str:
    return f"postgresql://{url.partition('://')[2]}"


def hidden(storage: str) -> str:
    """A storage's address without its password."""
    password = urlsplit(storage).password if "://" in storage else None
    return storage.replace(f":{password}@", ":…@") if password else storage


@contextmanager
def _reached(storage: str | None) -> Iterator[None]:
    """A database that does not answer is one sentence."""
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
        reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"the storage {hidden(storage or 'of the study')} does not answer: {reason}.") from None


def _journal(path: Path) -> Any:
    """A journal on this machine's disk, whose lock a killed worker cannot leave."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    lock: Any = _JournalLock(path.with_name(f"{path.name}.lock"))
    return JournalStorage(JournalFileBackend(str(path), lock))


class _JournalLock:
    """What Optuna asks of a journal's lock."""

    def __init__(self, path: Path) -> None:
        self._handle = host.open_lock(path)

    def acquire(self) -> bool:
        return host.lock(self._handle)

    def release(self) -> None:
        host.unlock(self._handle)
