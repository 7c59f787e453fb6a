"""Racing: all options on few pictures, and the rest of the measurement for those that are not beaten there.

An option of a unit is dropped where another option of the same unit (its removal included) takes no more time and does
less damage on every side of a 95 % interval of the paired difference, prompt by prompt. Of those left, at most `MOST` a
unit run on: the ones nearest to the front of time and damage, in layers as non-dominated sorting makes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asdm.measure import statistics
from asdm.models.families import Family
from asdm.plan.legality import ResolvedPlan
from asdm.utils.progress import Tell
from asdm_prof.planner.choices import edits_key, make_choices
from asdm_prof.records import EditDamage, Profile
from asdm_prof.sensitivity import measure, variants
from asdm_prof.sensitivity.settings import SensitivitySettings

PROMPTS, TIMESTEPS, MOST = 16, 4, 14


def first_heat(settings: SensitivitySettings) -> SensitivitySettings:
    """What all options run on."""
    return replace(settings, prompts=min(PROMPTS, settings.prompts), timesteps=min(TIMESTEPS, settings.timesteps))


def run(
    family: Family,
    settings: SensitivitySettings,
    replacements: Sequence[str] | None,
    profile: Profile,
    run_file: Path | None,
    tell: Tell,
) -> tuple[list[ResolvedPlan], list[EditDamage]]:
    """The edits that stay in the race, and those that do not, with what they did on few pictures."""
    singles: list[ResolvedPlan] = []
    saving = {edits_key(choice.edits): choice.saving for choice in make_choices(profile)}

    def sets(teacher: object) -> list[ResolvedPlan]:
        singles.extend(variants.measurable_edits(teacher, replacements))  # type: ignore[arg-type]
        return singles

    few = first_heat(settings)
    heat = run_file.with_name(f"{run_file.name}.race") if run_file else None
    errors = measure.measure_damage(family, sets, few, heat, tell).samples.mean(axis=2)  # (edits, prompts)
    savings = [saving.get(edits_key(one.edits)) for one in singles]
    kept = survivors([one.touched_units for one in singles], savings, errors)
    lost = [measure.edit_damage(one.edits, errors[i][:, None]) for i, one in enumerate(singles) if i not in kept]
    return [one for i, one in enumerate(singles) if i in kept], lost


def survivors(units: Sequence[frozenset[str]], savings: Sequence[float | None], errors: np.ndarray) -> set[int]:
    """Which options stay: `units` that each touches, what it saves (None: not known, it stays), errors by prompt."""
    groups: Mapping[frozenset[str], list[int]] = defaultdict(list)
    for i, touched in enumerate(units):
        groups[touched].append(i)
    kept: set[int] = set()
    for own in groups.values():
        left = [i for i in own if not any(_beats(j, i, savings, errors) for j in own if j != i)]
        known = [i for i in left if savings[i] is not None]
        kept |= {i for i in left if savings[i] is None} | {*_nearest_to_front(known, savings, errors)[:MOST]}
    return kept


def _beats(a: int, b: int, savings: Sequence[float | None], errors: np.ndarray) -> bool:
    ours, theirs = savings[a], savings[b]
    if ours is None or theirs is None or ours < theirs:
        return False
    return statistics.estimate((errors[b] - errors[a]).tolist(), np.mean).low > 0


def _nearest_to_front(options: list[int], savings: Sequence[float | None], errors: np.ndarray) -> list[int]:
    """Layer after layer of what no other of those left is better than in both."""
    ordered: list[int] = []
    mean = errors.mean(axis=1)
    while left := [i for i in options if i not in ordered]:
        front = [i for i in left if not any(savings[j] > savings[i] and mean[j] < mean[i] for j in left)]  # type: ignore[operator]
        ordered += front
    return ordered
