"""Does a plan made for one runtime, dtype, thread count, resolution or batch hold in another?

Two answers, both from profiles alone: how alike they rank the units, and what one plan would save by each of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from asdm.measure.statistics import spearman
from asdm.plan.edits import MeasuredAt, Prediction, PruningPlan, ReplaceUnit
from asdm.records.measurement import Estimate
from asdm.utils import sizes
from asdm.utils.record import utc_now
from asdm_prof.analysis.rank import rank
from asdm_prof.planner import plan as planner
from asdm_prof.profiler import checks
from asdm_prof.records import ComparedPlan, ComparedProfile, Comparison, Profile

WORDS = {"threads": "{} threads", "batch": "batch {}", "size": "{} px"}


def compare(
    sources: Sequence[tuple[Profile, str]],
    plans: Sequence[PruningPlan] = (),
    budget: str | None = None,
    command: str = "",
) -> Comparison:
    """Compare profiles of one model, each with the file it was read from; with `budget`, plan for each of them too.

    Raises ValueError for fewer than two profiles, for two models, and for a plan of another model.
    """
    profiles = [profile for profile, _ in sources]
    _check(sources, plans)
    names = names_of(profiles)
    priced = [_priced(plan, plan.name, profiles) for plan in plans]
    if budget is not None:
        own_plans = [planner.make_plan(profile, budget) for profile in profiles]
        priced += [_priced(plan, f"for {name}", profiles) for plan, name in zip(own_plans, names, strict=True)]
    scores = [{row.fqn: row.redundancy.median for row in rank(profile)} for profile in profiles]
    return Comparison(
        created_utc=utc_now(),
        command=command,
        family=profiles[0].family,
        config_sha256=profiles[0].config_sha256,
        profiles=tuple(
            ComparedProfile(
                name=name,
                source=source,
                sha256=profile.sha256(),
                measured_at=planner.measured_at(profile),
                latency_s=Estimate(**profile.whole.latency_s.model_dump(include={"median", "low", "high"})),
                split_half=checks.split_half(profile.parts),
            )
            for (profile, source), name in zip(sources, names, strict=True)
        ),
        spearman=tuple(tuple(_agreement(a, b) for b in scores) for a in scores),
        plans=tuple(priced),
    )


def _check(sources: Sequence[tuple[Profile, str]], plans: Sequence[PruningPlan]) -> None:
    if len(sources) < 2:
        raise ValueError(f"compare needs at least two profiles, got {len(sources)}.")
    first, source = sources[0]
    for profile, path in sources[1:]:
        if profile.config_sha256 != first.config_sha256:
            raise ValueError(
                f"{path} is of {profile.family} and {source} of {first.family}; units of two models do not compare."
            )
    for plan in plans:
        if plan.teacher_config_sha256 not in (None, first.config_sha256):
            raise ValueError(f"the plan {plan.name} was made for another teacher ({plan.family}) than {first.family}.")


def names_of(profiles: Sequence[Profile]) -> list[str]:
    """What sets each profile apart from the others: `onnxruntime batch 2`; equal ones are counted."""
    settings = [
        planner.measured_at(profile).model_dump() | {"size": sizes.shown(profile.size), "machine": _machine(profile)}
        for profile in profiles
    ]
    apart = [name for name in (*MeasuredAt.model_fields, "machine") if len({one[name] for one in settings}) > 1]
    bare = [" ".join(WORDS.get(name, "{}").format(one[name]) for name in apart) or "run" for one in settings]
    return [name if bare.count(name) == 1 else f"{name} #{bare[: i + 1].count(name)}" for i, name in enumerate(bare)]


def _machine(profile: Profile) -> str:
    """The processor that ran it, without the marks and words that all of them have."""
    name = profile.environment.get("gpu") or profile.environment.get("cpu", "?")
    return " ".join(re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b", "", name).split()) or "?"


def _agreement(a: dict[str, float], b: dict[str, float]) -> float:
    common = [fqn for fqn in a if fqn in b]
    return spearman([a[fqn] for fqn in common], [b[fqn] for fqn in common])


def _priced(plan: PruningPlan, name: str, profiles: Sequence[Profile]) -> ComparedPlan:
    hashes = [profile.sha256() for profile in profiles]
    return ComparedPlan(
        name=name,
        made_for=hashes.index(plan.profile_sha256) if plan.profile_sha256 in hashes else None,
        budget_ratio=plan.budget_ratio,
        predicted=tuple(_price(plan, profile) for profile in profiles),
    )


def _price(plan: PruningPlan, profile: Profile) -> Prediction | None:
    """None where the profile did not time one of the plan's replacements; raises ValueError for an illegal plan."""
    try:
        for edit in plan.edits:
            if isinstance(edit, ReplaceUnit):
                profile.option(edit)
    except ValueError:
        return None
    return planner.price(profile, plan.edits)
