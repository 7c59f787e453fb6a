"""The candidates of a new search: plans of little damage within the budget, as unlike each other as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asdm.models import loading
from asdm.models.families import Family
from asdm.plan.edits import PruningPlan
from asdm_prof.planner import frontier, plan as planner
from asdm_prof.planner.budgets import parse_budget
from asdm_prof.records import Damage, FrontierPoint, Profile
from asdm_prof.search.settings import SearchSettings


def new_study(
    family: Family, settings: SearchSettings, profile: Profile, damage: Damage | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings that a new study takes from its profile, and the plans of its candidates, as JSON.

    Raises ValueError for a profile or damage of another model, or where there are fewer plans than candidates.
    """
    if loading.unet_config_sha256(loading.meta_unet(family).config) != profile.config_sha256:
        raise ValueError(f"the profile was taken of {profile.family}, not of {family.name}; profile {family.name}.")
    points, apart = diverse_points(profile, settings, damage)
    damage_sha256 = damage.sha256() if damage else None
    budget_ratio = parse_budget(settings.budget, profile.whole.latency_s.median)
    plans = [
        PruningPlan(
            name=f"candidate-{number:02d}",
            family=family.name,
            teacher_config_sha256=profile.config_sha256,
            edits=point.edits,
            budget=settings.budget.strip(),
            budget_ratio=budget_ratio,
            damage_from=planner.MEASURED if damage else planner.STRUCTURAL_PRIOR,
            predicted=planner.price(profile, point.edits),
            profile_sha256=profile.sha256(),
            damage_sha256=damage_sha256,
            measured_at=planner.measured_at(profile),
        ).model_dump(mode="json", by_alias=True)
        for number, point in enumerate(points)
    ]
    facts = {
        "profile_sha256": profile.sha256(),
        "damage_sha256": damage_sha256,
        "budget_ratio": budget_ratio,
        "found_apart": apart,
        "damages": [point.damage for point in points],
        **{f"timed_{name}": getattr(profile, name) for name in ("backend", "dtype", "device", "threads", "batch")},
        "size": profile.size,
    }
    return facts, plans


def diverse_points(
    profile: Profile, settings: SearchSettings, damage: Damage | None
) -> tuple[Sequence[FrontierPoint], int]:
    """As many plans as there are candidates, and in how many choices each two differ: `settings.apart`, or fewer."""
    points: Sequence[FrontierPoint] = ()
    budget = {"latency": settings.budget}
    for apart in range(settings.apart, 0, -1):
        points = frontier.make_frontier(profile, damage, asked=budget, diverse=settings.candidates, apart=apart).diverse
        if len(points) == settings.candidates:
            return points, apart
    raise ValueError(
        f"there are only {len(points)} plans within the budget {settings.budget} for {settings.candidates} candidates; "
        f"choose --candidates {len(points)} or fewer, or a higher --budget."
    )
