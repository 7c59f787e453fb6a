"""Versioned records that `asdm-prof` writes, with every raw sample; tables and pictures are rendered from them.

One file per kind of record: a class with a schema in a new file is a kind by that alone (`kinds`). Names that many
files use are exported here.
"""

from __future__ import annotations

from functools import cache

from asdm.plan.edits import PruningPlan
from asdm.schedule.schedule import Schedule
from asdm.utils import registry
from asdm.utils.record import Record
from asdm_prof.records.comparison import ComparedPlan, ComparedProfile, Comparison
from asdm_prof.records.damage import (
    Additivity,
    Agreement,
    Damage,
    DamagePair,
    EditDamage,
    Fit,
    Interval,
    JointDamage,
    Work,
)
from asdm_prof.records.frontier import Frontier, FrontierPoint
from asdm_prof.records.profile import (
    Bound,
    ComponentRecord,
    OptionRecord,
    PartRecord,
    Peaks,
    ProcessRecord,
    Profile,
    Roofline,
    TrustLine,
    WholeRecord,
)
from asdm_prof.records.schedule_frontier import ScheduleFrontier, SchedulePoint
from asdm_prof.records.schedule_validation import ScheduleValidation
from asdm_prof.records.search import Rung, Search, SearchedStudent
from asdm_prof.records.steps_damage import StepsDamage
from asdm_prof.records.training_log import TrainingLog
from asdm_prof.records.validation import Correction, ValidatedPlan, Validation

__all__ = [
    "Additivity",
    "Agreement",
    "Bound",
    "ComparedPlan",
    "ComparedProfile",
    "Comparison",
    "ComponentRecord",
    "Correction",
    "Damage",
    "DamagePair",
    "EditDamage",
    "Fit",
    "Frontier",
    "FrontierPoint",
    "Interval",
    "JointDamage",
    "OptionRecord",
    "PartRecord",
    "Peaks",
    "ProcessRecord",
    "Profile",
    "Roofline",
    "Rung",
    "ScheduleFrontier",
    "SchedulePoint", "ScheduleValidation",
    "Search",
    "SearchedStudent",
    "StepsDamage",
    "TrainingLog",
    "TrustLine",
    "ValidatedPlan",
    "Validation",
    "WholeRecord",
    "Work",
    "kinds",
]  # fmt: skip

FOLDERS = ("asdm.records", "asdm_prof.records")


@cache
def kinds() -> dict[str, type[Record]]:
    """Every kind of file that a command writes, unfinished runs among them, by name: `asdm.profile` → `Profile`."""
    files = [registry.load(folder, name) for folder in FOLDERS for name in registry.names(folder)]
    classes = [PruningPlan, Schedule, *(value for file in files for value in vars(file).values())]
    return {
        model.SCHEMA.partition("/")[0]: model
        for model in classes
        if isinstance(model, type) and issubclass(model, Record) and "SCHEMA" in vars(model)
    }
