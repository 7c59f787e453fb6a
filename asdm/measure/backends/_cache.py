"""Things that cost minutes to make, kept on disk: folders by key, bounded in bytes, the longest unused goes first.

They are in the folder `onnx` of the cache (`ASDM_CACHE`, `~/.cache/asdm` otherwise); `ASDM_CACHE_GB` is the bound (12
otherwise).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from asdm.utils.io import cache_folder, whole_folder

DEFAULT_GB = 12.0


def folder() -> Path:
    """Where the cache is."""
    return cache_folder("onnx")


def bound_bytes() -> int:
    """What the cache may hold; raises ValueError where `ASDM_CACHE_GB` is no number."""
    text = os.environ.get("ASDM_CACHE_GB") or str(DEFAULT_GB)
    try:
        return int(float(text) * 1e9)
    except ValueError:
        raise ValueError(f"ASDM_CACHE_GB is {text!r}; give the cache's bound as a number of GB, such as 12.") from None


def kept(key: str, needed_bytes: int, make: Callable[[Path], object]) -> Path:
    """The folder `key`, which `make` fills where it is not there yet; about `needed_bytes` are cleared for it first.

    Raises ValueError where the bound is too small for it, or the disk is.
    """
    path = folder() / key
    if not path.exists():
        _clear(needed_bytes)
        with whole_folder(path) as temporary:
            make(temporary)
    os.utime(path)
    return path


def _clear(needed_bytes: int) -> None:
    """Remove the longest unused entries until `needed_bytes` more are within the bound."""
    bound = bound_bytes()
    if needed_bytes > bound:
        raise ValueError(
            f"the exported graph takes {needed_bytes / 1e9:.1f} GB and the cache may hold {bound / 1e9:g}: "
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
            f"the exported graph takes {needed_bytes / 1e9:.1f} GB and {free / 1e9:.1f} are free in {place}: "
            "set ASDM_CACHE to a folder with more room."
        )


def _entries() -> list[Path]:
    place = folder()
    return [path for path in place.iterdir() if path.is_dir()] if place.exists() else []


def size_bytes(path: Path) -> int:
    """What the files of a folder take."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
