"""Backends: what runs a UNet. One file each.

A file defines `NEEDS_WEIGHTS` and `open_session(unet, inputs, parts, clock) -> Session`.
"""

from __future__ import annotations

from typing import Protocol


class Session(Protocol):
    """A UNet that is ready to be called with fixed inputs."""

    def run(self) -> float:
        """Seconds of one bare call."""
        ...

    def run_parts(self) -> tuple[float, dict[str, float]]:
        """Seconds of one call with every part hooked: the whole, and each part by its fqn."""
        ...
