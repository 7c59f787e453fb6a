"""Versioned records that `asdm-prof` writes, with every raw sample; tables and pictures are rendered from them.

One file per kind of record; all names are exported here.
"""

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
]  # fmt: skip
