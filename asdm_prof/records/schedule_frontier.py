"""Schedules that no other beats."""

from __future__ import annotations

from asdm.records.measurement import Count, Factor, Number, Positive, Seconds
from asdm.schedule.schedule import Pass
from asdm.utils.record import Frozen, Record


class SchedulePoint(Frozen):
    """One schedule that no other beats in the whole image's latency and the final latent's damage, as predicted."""

    latency_s: Seconds
    ratio: Factor  # of the plain image
    damage: Number
    steps: tuple[str, ...]  # names of passes


class ScheduleFrontier(Record, schema="asdm.schedule-frontier/1"):
    """`asdm.schedule-frontier/1`: every schedule that no other beats, the fastest first."""

    family: str
    calls: Count
    plain_s: Positive  # seconds of the whole image without a schedule
    damage_from: str
    profile_sha256: str
    steps_damage_sha256: str | None = None
    passes: dict[str, Pass]
    points: tuple[SchedulePoint, ...]
    gained: bool | None = None  # whether any of them does less damage than fewer steps at its latency
