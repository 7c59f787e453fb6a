"""Putting what was written in its place, and what to say where that fails: why, and the room it needs and there is."""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OF_THE_DISK = (*FULL, errno.EROFS, errno.EIO)


def is_of_the_disk(error: BaseException) -> bool:
    """Whether it is the output's disk that an error is about; safetensors wraps the system's error in its own."""
    return (isinstance(error, OSError) and error.errno in OF_THE_DISK) or type(error).__name__ == "SafetensorError"


def reason(error: BaseException) -> str:
    """`no space left on device`, of Python's error or of safetensors' own."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    match = re.search(r'([^:("]+)(?: \(os error|" })', str(error))  # the messages of safetensors 0.6 and of 0.4
    return match[1].strip().lower() if match else str(error)


def cannot_write(path: Path, error: BaseException, needed: int | None = None) -> str:
    """`cannot write PATH: no space left on device (it needs 12 MB, and 3 MB are free there)`; needed: bytes."""
    return f"cannot write {path}: {reason(error)}{_room(path, error, needed) if is_full(error) else ''}"


def is_full(error: BaseException) -> bool:
    """Whether there was too little room for what was written."""
    return getattr(error, "errno", None) in FULL or reason(error) in {os.strerror(code).lower() for code in FULL}


def _room(path: Path, error: BaseException, needed: int | None) -> str:
    said = [] if needed is None else [f"it needs {_amount(needed, math.ceil)}"]
    if reason(error) != os.strerror(errno.EFBIG).lower():  # a limit of the process, however much is free
        place = path.absolute()
        while not place.exists():
            place = place.parent
        said.append(f"{_amount(shutil.disk_usage(place).free, math.floor)} are free there")
    return f" ({', and '.join(said)})" if said else ""


def _amount(count: int, rounded: Callable[[float], int]) -> str:
    unit, name = (1e6, "MB") if count >= 1e6 else (1e3, "kB")
    return f"{rounded(count / unit):,} {name}"


# ---------------------------------------------------------------------------------------------- two processes


def beside(path: Path) -> Path:
    """An unused name beside `path`: `profile-2.json`."""
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(name for name in numbered if not name.exists())


def rename(new: Path, path: Path, force: bool) -> None:
    """Rename a file to `path`; without `force`, never over what another process has written there meanwhile."""
    if not force:
        try:
            os.link(new, path)
        except FileExistsError:
            raise came_second(new, path) from None
        except OSError:  # a file system without links
            pass
        else:
            new.unlink()
            return
    os.replace(new, path)


def came_second(new: Path, path: Path) -> ValueError:
    """Puts what was written beside what another process wrote, so that neither is lost; the error says where."""
    name = beside(path)
    os.replace(new, name)
    return ValueError(f"{path} was written by another process meanwhile; what this one made is in {name}.")
