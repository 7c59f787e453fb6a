"""What is timed has its machine alone; other work of this package waits (docs/methods/measurement.md).

Workers hold a lock together and let go of it between two steps; who times something takes it for himself. The kernel
drops the locks of a process that was killed. They hold among processes that have the same temporary folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GATE, FLOOR = "asdm-timing-gate.lock", "asdm-timing-floor.lock"


class Host:
    """This machine, as all processes see it that share `folder` (by default the system's temporary one)."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._gate, self._floor = (open_lock(self._folder / name) for name in (GATE, FLOOR))

    def close(self) -> None:
        for handle in (self._gate, self._floor):
            os.close(handle)

    @contextmanager
    def working(self) -> Iterator[Callable[[], None]]:
        """Nothing is timed in the block; yields what is to be called where it may pause, such as between two steps."""
        self._enter()
        try:
            yield self._breathe
        finally:
            unlock(self._floor)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Nobody else times in the block, and nobody works."""
        lock(self._gate)  # from here on no worker comes in, so that workers who take turns cannot keep us waiting
        try:
            lock(self._floor)
            yield
        finally:
            unlock(self._floor)
            unlock(self._gate)

    def _enter(self) -> None:
        lock(self._gate, shared=True)
        lock(self._floor, shared=True)
        unlock(self._gate)

    def _breathe(self) -> None:
        unlock(self._floor)
        self._enter()


# ---------------------------------------------------------------------------------------------- file locks


def open_lock(path: Path) -> int:
    """A handle to lock by; what another user has made is opened, not made."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        before = os.umask(0)
        try:
            return os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
        finally:
            os.umask(before)


def lock(handle: int, shared: bool = False, wait: bool = True) -> bool:
    """Lock a handle; False where somebody else has it and we are not to wait."""
    fcntl = _fcntl()
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def unlock(handle: int) -> None:
    """Let go of a handle's lock, whichever it was."""
    if fcntl := _fcntl():
        fcntl.flock(handle, fcntl.LOCK_UN)


def _fcntl() -> Any:
    try:
        import fcntl
    except ImportError:  # not on Windows, where nobody waits
        return None
    return fcntl
