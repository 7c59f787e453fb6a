"""Seams: folders of modules with one interface, whose file names are the names that users type."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names(package: str) -> list[str]:
    """The names of a seam's files, sorted."""
    folder = importlib.import_module(package)
    return sorted(info.name for info in pkgutil.iter_modules(folder.__path__) if not info.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the seam's file `name`; raises ValueError for an unknown name or a missing optional package."""
    choices = names(package)
    what = package.rpartition(".")[2]
    if name not in choices:
        raise ValueError(f"unknown name {name!r} in {what}; choose from {', '.join(choices)}.")
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"{name!r} of {what} needs the package {error.name!r}, which is not installed.") from None
