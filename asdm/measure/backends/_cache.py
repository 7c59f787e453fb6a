"""A disk cache of exported graphs: folders by key, bounded in bytes, the least recently used deleted first.

It is the folder `onnx` of `ASDM_CACHE` (default: `~/.cache/asdm`), and may hold `ASDM_CACHE_GB` (default: 12).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from asdm.utils.io import cache_folder, whole_folder

DEFAULT_GB = 12.0


def folder() -> Path:
    """The folder of the cache."""
    return cache_folder("onnx")


def bound_bytes() -> int:
    """The size limit; raises ValueError if `ASDM_CACHE_GB` is not a number."""
    text = os.environ.get("ASDM_CACHE_GB") or str(DEFAULT_GB)
    try:
        return int(float(text) * 1e9)
    except ValueError:
        raise ValueError(f"ASDM_CACHE_GB must be a number of GB, such as 12, got {text!r}.") from None


def get_or_make(key: str, needed_bytes: int, make: Callable[[Path], object]) -> Path:
    """The folder `key`, filled by `make` if it does not exist; about `needed_bytes` are freed for it first.

    Raises ValueError if the limit or the disk is too small.
    """
    path = folder() / key
    if not path.exists():
        _clear(needed_bytes)
        with whole_folder(path) as temporary:
            make(temporary)
    os.utime(path)
    return path


def _clear(needed_bytes: int) -> None:
    """Delete the least recently used entries until `needed_bytes` more are within the limit."""
    bound = bound_bytes()
    if needed_bytes > bound:
        raise ValueError(
            f"the exported graph takes {needed_bytes / 1e9:.1f} GB, but the cache may hold {bound / 1e9:g} GB; "
            f"set ASDM_CACHE_GB={needed_bytes / 1e9 + 1:.0f} or more."
        )
    entries = sorted(_entries(), key=lambda path: path.stat().st_mtime_ns)
    sizes = {path: size_bytes(path) for path in entries}
    while entries and sum(sizes[path] for path in entries) + needed_bytes > bound:
        shutil.rmtree(entries.pop(0), ignore_errors=True)
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise ValueError(
            f"the exported graph takes {needed_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in {place}; "
            "set ASDM_CACHE to a folder with more space."
        )


def _entries() -> list[Path]:
    place = folder()
    return [path for path in place.iterdir() if path.is_dir()] if place.exists() else []


def size_bytes(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
