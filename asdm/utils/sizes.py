"""Sizes of images: one number for a square, (width, height) otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Size = int | tuple[int, int]


def parse(given: Any) -> Size:
    """A size from `512`, `512x768` or two numbers; raises ValueError for anything else."""
    parts: Sequence[Any] = (given,)
    if isinstance(given, str):
        parts = given.lower().replace("×", "x").split("x")
    elif isinstance(given, list | tuple):
        parts = given
    if len(parts) not in (1, 2) or not all(str(part).strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"size must be pixels per side (512) or WIDTHxHEIGHT (512x768), got {given!r}.")
    width, height = int(parts[0]), int(parts[-1])
    return width if width == height else (width, height)


def sides(size: Size) -> tuple[int, int]:
    """Width and height."""
    return (size, size) if isinstance(size, int) else size


def shown(size: Size | str) -> str:
    """`512`, or `512x768` as an option takes it; the text of another setting as it is."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def square(size: Size | None, what: str) -> int | None:
    """The side of a square; raises ValueError where `what` takes nothing else."""
    if size is None or isinstance(size, int):
        return size
    raise ValueError(f"{what} takes square pictures alone, got {shown(size)}.")
