"""The plan of every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asdm.plan import presets
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm_prof.planner import plan as planner
from asdm_prof.records import Damage, Profile
from benchmarks import baselines
from benchmarks.proof.rows import BK_STYLE, PLANNED, Row


def plans_of(
    rows: Sequence[Row], profile: Profile, damage: Damage, budget: str, folder: Path
) -> dict[str, PruningPlan]:
    """Every row's plan by its name, saved as `folder/plans/ROW.json`."""
    planned = planner.make_plan(profile, budget, damage=damage)
    plans = {}
    for row in rows[1:]:
        plan = _plan(row, planned, profile, damage)
        edits = tuple(e for e in plan.edits if not (isinstance(e, ReplaceUnit) and e.with_ in row.without))
        plans[row.name] = plan.model_copy(update={"name": row.name, "edits": edits})
        plans[row.name].save(plan_file(row, folder), force=True)
    return plans


def _plan(row: Row, planned: PruningPlan, profile: Profile, damage: Damage) -> PruningPlan:
    if row.plan == PLANNED:
        return planned
    kind, _, preset = row.plan.rpartition("=")
    if kind == PLANNED:
        ratio = planner.price(profile, presets.PRESETS[preset](profile.topology)).ratio
        return planner.make_plan(profile, f"{ratio:.6f}", confidence=0.5, damage=damage)
    if row.plan == BK_STYLE:
        edits = baselines.bk_style(profile, planner.price(profile, planned.edits).ratio)
    else:
        edits = tuple(presets.PRESETS[row.plan](profile.topology))
    return PruningPlan(family=profile.family, teacher_config_sha256=profile.config_sha256, edits=edits)


def plan_file(row: Row, folder: Path) -> Path:
    """Where a row's plan is saved."""
    return folder / "plans" / f"{row.name}.json"
