"""What a live display shows while a profile runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Status:
    """What a live display shows while the profile runs."""

    stage: str
    calls: int = 0
    eta_s: float | None = None
    parts: dict[str, list[float]] = field(default_factory=dict)


Watch = Callable[[Status], None]
