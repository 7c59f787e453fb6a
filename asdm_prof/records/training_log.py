"""The log of a student's training, as the report reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from asdm.utils.record import Frozen

# What a line of `asdm distill`'s log holds besides loss terms.
NOT_TERMS = ("step", "stage_step", "learning_rate", "gradient_norm", "step_s", "images_per_s")


class TrainingLog(Frozen):
    """A run of `asdm distill`: every loss term, step by step, and the step with which each stage begins."""

    steps: tuple[int, ...]
    terms: dict[str, tuple[float | None, ...]]
    stages: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> TrainingLog:
        """Read a `log.jsonl`, without a last line that is still being written.

        Raises ValueError if the file is missing, or if no line of it is a training step.
        """
        if not path.is_file():
            raise ValueError(f"{path} is not a file; name the log.jsonl of an `asdm distill` run.")
        lines = [line for line in map(_line, path.read_text(encoding="utf-8", errors="replace").split("\n")) if line]
        rows = [_numbers(line) for line in lines]
        names = list(dict.fromkeys(name for row in rows for name in row if name not in NOT_TERMS))
        if not names:
            raise ValueError(f"{path} has no line with a step and a loss; name the log.jsonl of an `asdm distill` run.")
        stages: dict[str, int] = {}
        for line in lines:
            if line.get("stage"):
                stages.setdefault(str(line["stage"]), int(line["step"]))
        terms = {name: tuple(row.get(name) for row in rows) for name in names}
        return cls(steps=tuple(int(row["step"]) for row in rows), terms=terms, stages=stages)


def _line(text: str) -> dict[str, Any]:
    """One line of a log; empty if it is not a step."""
    try:
        line = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):  # no JSON, too long a number, or too deep
        return {}
    return line if isinstance(line, dict) and _is_number(line.get("step")) else {}


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max
