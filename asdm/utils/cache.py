"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of the cache, `$ASDM_CACHE/<name>` or `~/.cache/asdm/<name>`; the folder is not created.

    Raises ValueError where there is no home folder either.
    """
    if named := os.environ.get("ASDM_CACHE"):
        return Path(named) / name
    try:
        return Path.home() / ".cache" / "asdm" / name
    except RuntimeError:
        raise ValueError("there is no home folder to cache in; set ASDM_CACHE to one that can be written.") from None
