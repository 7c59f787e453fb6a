"""The same profile from several new processes, to measure the variation between processes.

The placement of memory, threads and compiled code is fixed when a process starts, so the intervals from the calls of
one process are too narrow. Each process here measures the whole profile again.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asdm.measure.statistics import spearman
from asdm.records.measurement import Estimate
from asdm.utils import sizes
from asdm_prof.planner import plan as planner
from asdm_prof.profiler.checks import told_apart
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import ProcessRecord, Profile, TrustLine

MAIN = "from asdm_prof.cli import main; main()"
BUDGET = 0.8  # of the plan that must hold in every process


def profile_again(family: str, settings: ProfileSettings, n: int, say: Callable[[str], None]) -> list[Profile]:
    """`n` profiles, each by a new process; raises ValueError for a negative number, or if a process fails."""
    if n < 0:
        raise ValueError(f"processes must be at least 1, got {n + 1}.")
    profiles = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            say(f"Process {i + 1} of {n + 1}")
            path = Path(folder) / f"profile-{i}.json"
            words = [sys.executable, "-c", MAIN, "profile", family, *_words(settings), "-o", str(path), "--json"]
            process = subprocess.run(words, stdout=subprocess.DEVNULL)  # its progress goes to our stderr
            if process.returncode:
                raise ValueError(f"process {i + 1} of {n + 1} ended with {process.returncode}; its message is above.")
            profiles.append(Profile.load(path))
    return profiles


def _words(settings: ProfileSettings) -> list[str]:
    """Settings as the options of `asdm-prof profile`."""
    names = ("weights", "config", "variant", "backend", "device", "dtype", "threads", "seed", "batch", "options")
    values = {name: getattr(settings, name) for name in names} | {"time-budget": settings.time_budget_s}
    values |= {"size": settings.size and sizes.shown(settings.size)}
    pairs = [*values.items(), *(("lora", lora) for lora in settings.lora or ())]
    words = [word for name, value in pairs if value is not None for word in (f"--{name}", str(value))]
    return [*words, *(["--components"] if settings.time_components else [])]


def with_others(profile: Profile, others: Sequence[Profile]) -> Profile:
    """A profile with the measurements of other processes, and a line of the trust box on their agreement."""
    everyone = [profile, *others]
    trust = (*profile.trust, agreement(everyone))
    return profile.model_copy(update={"processes": tuple(map(_record, everyone)), "trust": trust})


def _record(profile: Profile) -> ProcessRecord:
    return ProcessRecord(
        created_utc=profile.created_utc,
        latency_s=Estimate(**profile.whole.latency_s.model_dump(include={"median", "low", "high"})),
        shares={part.fqn: part.share.median for part in profile.parts},
        host=profile.host,
    )


def agreement(profiles: Sequence[Profile]) -> TrustLine:
    """Fails if two processes rank two units in opposite order, or a plan for one misses its budget in another."""
    shares = np.array([[unit.share.median for unit in profile.units] for profile in profiles])  # (processes, units)
    params = [unit.params for unit in profiles[0].units]
    alike = min(spearman(a / params, b / params) for a, b in itertools.combinations(shares, 2))
    spread = shares.std(axis=0, ddof=1) / shares.mean(axis=0)
    worst = profiles[0].units[int(spread.argmax())].label
    value = (
        f"Spearman {alike:.3f} between {len(profiles)} processes; a unit's share varies by "
        f"{np.median(spread):.1%}, {worst} by {spread.max():.1%}"
    )
    turned = max(_turned(a, b) for a, b in itertools.combinations(profiles, 2))
    missed = _missed(profiles)
    if turned:
        value += f"; {turned} pairs of the rank turn"
    if missed is not None:
        value += f"; a plan for {BUDGET} of one takes {missed:.3f} in another"
    return TrustLine(
        check="fresh processes agree",
        value=value,
        passed=not turned and missed is None,
        remedy="trust no difference below this variation; close other programs and run again.",
    )


def _turned(a: Profile, b: Profile) -> int:
    """How many pairs of units both processes separate, but in opposite order."""
    ours = {(first.fqn, second.fqn) for first, second in told_apart(a.units)}
    return sum((second.fqn, first.fqn) in ours for first, second in told_apart(b.units))


def _missed(profiles: Sequence[Profile]) -> float | None:
    """The worst ratio of a plan in a process other than its own, if that is above the budget, else None."""
    ratios = []
    for one, other in itertools.permutations(profiles, 2):
        try:
            plan = planner.make_plan(one, str(BUDGET))
            ratios.append(planner.price(other, plan.edits).ratio)
        except (planner.Infeasible, ValueError):  # a model that cannot be planned on, such as a student
            continue
    return max((ratio for ratio in ratios if ratio > BUDGET), default=None)
