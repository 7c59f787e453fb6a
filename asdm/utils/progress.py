"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str, int, float | None], None]  # stage, calls (or steps, pictures) so far, seconds left if known
