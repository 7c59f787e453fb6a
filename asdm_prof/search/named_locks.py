"""Named locks that workers share: files on one machine, or PostgreSQL's advisory locks for many.

Both are released by the kernel or the server when the process that holds them dies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from asdm.utils import io, locks


class NamedLocks(Protocol):
    """Locks that end with the process that holds them; `take` says whether it got the lock."""

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
        handle = locks.open_lock(self._folder / f"{name}.lock")
        if not locks.lock(handle, shared, wait):
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
