"""Renderers: one file each, a function of saved records. Nothing here measures anything.

A file defines `OUTPUT`, the name of what it writes (None: nothing), and `render(report, folder) -> list[Path]`, which
writes it into `folder` and says which files those are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from asdm.plan import PruningPlan
from asdm.results import BenchResult
from asdm_prof.records import Comparison, Profile, Validation
from asdm_prof.renderers._drawn import DamageFile, FrontierFile, TrainingLog


@dataclass(frozen=True)
class Report:
    """What a report is made of: a profile, and what followed from it where it was run.

    `family_costs` is Fig. 1 of the paper: rows of parameters and MACs per image for the families compared.
    """

    profile: Profile
    plan: PruningPlan | None = None
    benches: tuple[BenchResult, ...] = ()  # students of this teacher: the plan's own, and presets such as a_sdm
    sources: dict[str, str] = field(default_factory=dict)  # what → the file it was read from
    family_costs: tuple[FamilyCost, ...] = ()
    validation: Validation | None = None
    comparison: Comparison | None = None
    damage: DamageFile | None = None
    frontier: FrontierFile | None = None
    log: TrainingLog | None = None  # of the distillation of one of the students


@dataclass(frozen=True)
class FamilyCost:
    """One component of one family: parameters, MACs of one call, and calls per image (Fig. 1)."""

    family: str
    title: str
    component: str
    params: int
    macs: int
    calls: int
