"""The plans that no other beats."""

from __future__ import annotations

from asdm.plan.edits import AnyEdit
from asdm.records.measurement import Number
from asdm.utils.record import Frozen, Record, later


class FrontierPoint(Frozen):
    """One plan that no other beats in both latency and damage, as the profile prices it."""

    latency_s: Number
    ratio: Number
    macs: Number  # shares of the teacher's
    params: Number
    damage: Number
    edits: tuple[AnyEdit, ...]


class Frontier(Record, schema="asdm.frontier/1"):
    """`asdm.frontier/1`: every plan that no other beats, the teacher first; the best and unlike ones within budgets."""

    family: str
    teacher_config_sha256: str
    by: str  # what stands against damage: latency, macs or params
    budgets: dict[str, float]  # shares of the teacher's
    complete: bool  # False: under budgets besides, walked in steps
    damage_from: str
    profile_sha256: str
    damage_sha256: str | None = None
    points: tuple[FrontierPoint, ...]
    best: tuple[FrontierPoint, ...] = ()
    diverse: tuple[FrontierPoint, ...] = ()
    loads_in: tuple[str, ...] = later(())  # programs that were to load the students
    apart: int  # choices in which two of `diverse` differ at least

    def cost(self, point: FrontierPoint) -> float:
        """What stands against a plan's damage here, as a share of the teacher's."""
        return {"macs": point.macs, "params": point.params}.get(self.by, point.ratio)
