"""Opens a search's study: in a journal file of one machine, or in PostgreSQL for workers on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asdm.utils import locks
from asdm.utils.io import brief
from asdm_prof.analysis.diff import MACHINE
from asdm_prof.search.named_locks import DatabaseLocks, FileLocks, NamedLocks, held
from asdm_prof.search.study import SharedStudy

MISSING = "asdm-prof search needs the packages of the extra 'search'; pip install 'asdm-prof[search]'."
JOURNAL = "study.jsonl"


@contextmanager
def open_study(
    storage: str | None,
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    maximise: bool,
    begin: Callable[[], tuple[Mapping[str, Any], list[dict[str, Any]]]],
) -> Iterator[SharedStudy]:
    """The study of a search; a new one gets more settings and the candidates' plans from `begin()`.

    `settings` must equal those of an existing study. Raises ValueError for a study of another search, a storage that is
    not PostgreSQL or does not answer, and where the extra is missing.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ValueError(MISSING) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = database_url(storage) if storage else None
    with _connection_errors(storage):
        named_locks: NamedLocks = DatabaseLocks(_without_driver(url), name) if url else FileLocks(folder / "locks")
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
                _check_same(settings, known, name, storage or str(folder))
            study = SharedStudy(optuna_study, named_locks, known, tuple(optuna_study.user_attrs["plans"]), maximise)
            named_locks.take(f"host-{study.host}", shared=True, wait=True)
            yield study
        finally:
            named_locks.close()


def _check_same(settings: Mapping[str, Any], known: Mapping[str, Any], name: str, place: str) -> None:
    """Raises ValueError naming the first setting in which two searches differ."""
    for key, value in settings.items():
        if known.get(key) == value:
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


def _without_driver(url: str) -> str:
    return f"postgresql://{url.partition('://')[2]}"


def without_password(storage: str) -> str:
    """A storage's address with its password hidden."""
    password = urlsplit(storage).password if "://" in storage else None
    return storage.replace(f":{password}@", ":…@") if password else storage


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
        reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        place = without_password(storage or "of the study")
        raise ValueError(f"the storage {place} does not answer: {reason}.") from None


def _journal(path: Path) -> Any:
    """A journal on this machine's disk, whose lock does not outlive a killed worker."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    lock: Any = _JournalLock(path.with_name(f"{path.name}.lock"))
    return JournalStorage(JournalFileBackend(str(path), lock))


class _JournalLock:
    """A file lock with the methods that Optuna's journal calls."""

    def __init__(self, path: Path) -> None:
        self._handle = locks.open_lock(path)

    def acquire(self) -> bool:
        return locks.lock(self._handle)

    def release(self) -> None:
        locks.unlock(self._handle)
