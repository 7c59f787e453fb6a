"""Renderers: one file each, a function of saved records. Nothing here measures anything.

A file defines `OUTPUT`, the name of what it writes (None: nothing), and `render(report, folder) -> list[Path]`, which
writes it into `folder` and says which files those are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from asdm.plan.edits import PruningPlan
from asdm.records.bench import BenchResult
from asdm_prof.records import Budgets, Comparison, Damage, Frontier, Profile, Proof, Search, TrainingLog, Validation


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
    damage: Damage | None = None
    frontier: Frontier | None = None
    budgets: Budgets | None = None
    log: TrainingLog | None = None  # of the distillation of one of the students
    beside: Profile | None = None  # of another model of the same blocks, to see what structure they share
    proof: Proof | None = None
    search: Search | None = None

    def own_point(self) -> tuple[float, float] | None:
        """Where the plan stands beside the frontier: its cost and damage; None where the two measure damage apart."""
        plan, frontier = self.plan, self.frontier
        if plan is None or frontier is None:
            return None
        for point in frontier.points:
            if sorted(map(str, point.edits)) == sorted(map(str, plan.edits)):
                return frontier.cost(point), point.damage
        alike = (plan.damage_from, plan.damage_sha256) == (frontier.damage_from, frontier.damage_sha256)
        if not alike or frontier.by != "latency" or plan.predicted is None or plan.proof is None:
            return None
        return plan.predicted.ratio, plan.proof.damage


@dataclass(frozen=True)
class FamilyCost:
    """One component of one family: parameters, MACs of one call, and calls per image (Fig. 1)."""

    family: str
    title: str
    component: str
    params: int
    macs: int
    calls: int
