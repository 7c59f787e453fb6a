"""File locks, and the machine lock by which several processes leave the machine to the one that measures latency.

Workers share a lock and release it between two steps; a measurement takes it exclusively. The kernel releases the
locks of a process that is killed. They work between processes that have the same temporary folder
(docs/methods/measurement.md).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from asdm.utils.disk import reason

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None
AVAILABLE = fcntl is not None

GATE, FLOOR = "asdm-timing-gate.lock", "asdm-timing-floor.lock"


class MachineLock:
    """One per machine: shared by all processes that use the same `folder`, by default the system's temporary folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        with self._needed():
            self._entry, self._work = (open_lock(self._folder / name) for name in (GATE, FLOOR))

    def close(self) -> None:
        for handle in (self._entry, self._work):
            os.close(handle)

    @contextmanager
    def working(self) -> Iterator[Callable[[], None]]:
        """No latency is measured during the block; yields a function that lets a measurement go first, to be called
        between two steps."""
        self._enter()
        try:
            yield self._yield_to_timing
        finally:
            unlock(self._work)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """No other process measures or works during the block."""
        with self._needed():
            lock(self._entry)  # no worker enters from here on, so that workers in turns cannot starve a measurement
        try:
            with self._needed():
                lock(self._work)
            yield
        finally:
            unlock(self._work)
            unlock(self._entry)

    def _enter(self) -> None:
        with self._needed():
            lock(self._entry, shared=True)
            lock(self._work, shared=True)
            unlock(self._entry)

    def _needed(self) -> AbstractContextManager[None]:
        return needed(self._folder, "set TMPDIR to a folder on a local disk")

    def _yield_to_timing(self) -> None:
        unlock(self._work)
        self._enter()


# ---------------------------------------------------------------------------------------------- file locks


def open_lock(path: Path) -> int:
    """A file handle to lock; a file that another user created is only opened."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        before = os.umask(0)
        try:
            return os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
        finally:
            os.umask(before)


def lock(handle: int, shared: bool = False, wait: bool = True) -> bool:
    """Lock a file handle; False if another process holds the lock and `wait` is False."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def is_free(path: Path) -> bool:
    """Whether no process holds a lock of a file or folder that exists; False where there are no locks."""
    if fcntl is None:
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        return lock(handle, wait=False)
    finally:
        os.close(handle)


@contextmanager
def needed(place: Path, instead: str) -> Iterator[None]:
    """Turns a lock that cannot be had, as on a file system without any, into one sentence with what to do `instead`."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{place} cannot be locked ({reason(error)}); {instead}.") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; raises ValueError where another process does. On a disk without locks, nothing is held."""
    handle = os.open(folder, os.O_RDONLY) if AVAILABLE else None
    try:
        with suppress(OSError):
            if handle is not None and not lock(handle, wait=False):
                raise ValueError(f"{folder} is being written by another process; wait for it.")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def unlock(handle: int) -> None:
    """Release the lock of a file handle."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_UN)
