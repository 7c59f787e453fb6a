"""`asdm slim`: what it was asked for, and the commands that it has run."""

from __future__ import annotations

from pydantic import JsonValue

from asdm.utils.record import Frozen, Record


class SlimStep(Frozen):
    """A command that has been run to its end."""

    name: str
    command: tuple[str, ...]
    seconds: float


class SlimRun(Record, schema="asdm.slim/1"):
    """`asdm.slim/1`: the run that a folder belongs to; another one is refused in it."""

    created_utc: str
    identity: dict[str, JsonValue]
    training: tuple[str, ...] | None = None  # options by which training fits into memory, chosen once
    steps: tuple[SlimStep, ...] = ()
