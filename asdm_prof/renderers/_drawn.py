"""What a report draws of files that other commands write: the fields that it needs, the others are ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator

from asdm.files import Frozen, Record
from asdm.plan import AnyEdit, PruningPlan
from asdm_prof.records import Profile

# Keys of a training log that are no loss terms.
NOT_TERMS = (
    "step", "stage_step", "epoch", "stage", "seed", "rate", "lr", "learning_rate", "gradient_norm", "images_per_s",
    "seconds", "step_s", "eta_s", "time",
)  # fmt: skip


class Amount(Frozen):
    """A value with its 95 % interval; a plain number stands for one without."""

    value: float
    low: float
    high: float


def _amount(value: Any) -> Any:
    return {"value": value, "low": value, "high": value} if isinstance(value, (int, float)) else value


class EditDamage(Frozen):
    """One edit and the damage it does by itself."""

    edit: AnyEdit
    damage: Amount

    _plain = field_validator("damage", mode="before")(_amount)


class Additivity(Frozen):
    """How well damages add up: predicted sums against measured joint damage of random plans."""

    spearman: float | None = None
    r2: float | None = None


class OfModel(Record):
    """A file that says which model it is about, by hash or by family."""

    family: str | None = None
    config_sha256: str | None = None
    teacher_config_sha256: str | None = None

    def is_of(self, profile: Profile) -> bool:
        """Whether it is about a profile's model."""
        sha256 = self.config_sha256 or self.teacher_config_sha256
        return sha256 == profile.config_sha256 if sha256 else self.family in (None, profile.family)


class DamageFile(OfModel):
    """`asdm.damage/1`, as `asdm-prof sensitivity` writes it."""

    SCHEMA: ClassVar[str] = "asdm.damage/1"
    edits: tuple[EditDamage, ...]
    additivity: Additivity | None = None


class FrontierPoint(Frozen):
    """A plan that no other beats in both latency and damage."""

    latency_s: float
    damage: Amount
    edits: tuple[AnyEdit, ...]

    _plain = field_validator("damage", mode="before")(_amount)


class FrontierFile(OfModel):
    """`asdm.frontier/1`, as `asdm-prof frontier` writes it."""

    SCHEMA: ClassVar[str] = "asdm.frontier/1"
    damage_from: str | None = None  # where the damages come from, as a plan says it
    points: tuple[FrontierPoint, ...]
    best: tuple[FrontierPoint, ...] = ()  # the k best within the budgets that were asked for
    diverse: tuple[FrontierPoint, ...] = ()  # good ones that are unlike each other


class TrainingLog(Frozen):
    """A run of `asdm distill`: every loss term, step by step."""

    steps: tuple[int, ...]
    terms: dict[str, tuple[float | None, ...]]

    @classmethod
    def load(cls, path: Path) -> TrainingLog:
        """Read a `log.jsonl`; a last line that is still being written is left out.

        Raises ValueError where the file is missing, or no line of it is a step of a training.
        """
        if not path.is_file():
            raise ValueError(f"{path} is no file; name the log.jsonl of an `asdm distill` run.")
        rows = [row for row in map(_row, path.read_text(encoding="utf-8", errors="replace").splitlines()) if row]
        names = list(dict.fromkeys(name for row in rows for name in row if name not in NOT_TERMS))
        if not rows or not names:
            raise ValueError(f"{path} has no line with a step and a loss; name the log.jsonl of an `asdm distill` run.")
        terms = {name: tuple(row.get(name) for row in rows) for name in names}
        return cls(steps=tuple(int(row["step"]) for row in rows), terms=terms)


def _row(line: str) -> dict[str, float]:
    """The finite numbers of one line, empty where it is no step."""
    try:
        found = json.loads(line, parse_constant=lambda _: None)
    except json.JSONDecodeError:
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("step"), (int, float)):
        return {}
    return {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def own_point(plan: PruningPlan | None, frontier: FrontierFile, teacher_s: float) -> tuple[float, Amount] | None:
    """Where a plan stands beside a frontier: latency ratio and damage; None where the two measure damage apart."""
    if plan is None:
        return None
    for point in frontier.points:
        if sorted(map(str, point.edits)) == sorted(map(str, plan.edits)):
            return point.latency_s / teacher_s, point.damage
    if frontier.damage_from is None or frontier.damage_from != plan.damage_from:
        return None
    if plan.predicted is None or plan.proof is None:
        return None
    return plan.predicted.ratio, Amount(value=plan.proof.damage, low=plan.proof.damage, high=plan.proof.damage)
