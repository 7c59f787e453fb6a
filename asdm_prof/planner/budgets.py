"""Budgets of latency, MACs, parameters and memory: parsed from text, and as rows of the integer programme."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from asdm.plan.edits import ReplaceUnit
from asdm_prof.planner.problem import Problem, Row
from asdm_prof.records import Profile

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
BUDGETS = ("latency", "macs", "params", "memory")


def memory_bytes(profile: Profile, params: float = 0.0, gone: frozenset[str] = frozenset()) -> int:
    """Weights and the largest activations of one call, after a share of the parameters and some units are removed.

    Activations of a part that stays are taken to be the teacher's, so for a student this is an upper bound.
    """
    parts = [part.peak_memory_bytes for part in profile.parts if part.fqn not in gone]
    return round(BYTES[profile.dtype] * profile.whole.params * (1 - params)) + max(parts, default=0)


def budget_rows(problem: Problem, budgets: Mapping[str, float], below: float = 0.0) -> dict[str, list[Row]]:
    """Budgets, as shares of the teacher's, as rows over the choices; `below` is the margin under the latency budget.

    Each row is written so that a smaller budget is a larger lower bound; a budget of the whole teacher needs none.
    """
    choices, rows = problem.choices, dict[str, list[Row]]()
    for name, share in budgets.items():
        if share >= 1:
            rows[name] = []
            continue
        if name == "memory":
            rows[name] = list(_memory_rows(problem, share))
            continue
        saves = {i: {"latency": c.saving, "macs": c.macs, "params": c.params}[name] for i, c in enumerate(choices)}
        rows[name] = [(saves, 1 - share + (below if name == "latency" else 0.0), np.inf)]
    return rows


def _memory_rows(problem: Problem, share: float) -> Iterator[Row]:
    """A row for every unit, in shares of the teacher's: weights, and the unit's activations unless it is removed."""
    profile, choices = problem.profile, problem.choices
    whole = memory_bytes(profile)
    weights = BYTES[profile.dtype] * profile.whole.params / whole
    saves = {i: weights * c.params for i, c in enumerate(choices)}
    least = weights + max((part.peak_memory_bytes for part in profile.glue), default=0) / whole - share
    yield saves, least, np.inf
    for unit in profile.units:
        goes = {i: unit.peak_memory_bytes / whole for i, c in enumerate(choices)
                if unit.fqn in c.touches and not isinstance(c.edit, ReplaceUnit)}  # fmt: skip
        both = {i: saves[i] + goes.get(i, 0.0) for i in saves}
        yield both, weights + unit.peak_memory_bytes / whole - share, np.inf


NO_BUDGET = "no budget; give one or more of --budget (latency), --macs, --params, --memory."


def parse_budget(text: str, teacher_latency_s: float) -> float:
    """`0.8`, `80%`, `250ms`, `1.2s` or `x1.3` as a ratio to the teacher's latency; raises ValueError otherwise."""
    word = text.strip().lower()
    try:
        if word.startswith("x"):
            ratio = 1 / float(word[1:])
        elif word.endswith("%"):
            ratio = float(word[:-1]) / 100
        elif word.endswith("ms"):
            ratio = float(word[:-2]) / 1e3 / teacher_latency_s
        elif word.endswith("s"):
            ratio = float(word[:-1]) / teacher_latency_s
        else:
            ratio = float(word)
    except (ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise ValueError(
            f"budget must be above 0 and at most the teacher's {_below(teacher_latency_s)} s, got {text!r}: "
            "give a fraction (0.8), a percentage (80%), a time (250ms, 1.2s) or a speed-up (x1.3)."
        )
    return ratio


def parse_budgets(asked: Mapping[str, str], profile: Profile) -> dict[str, float]:
    """Budgets by name as shares of the teacher's: latency as in `parse_budget`, others as 0.8, 80%, 650M or 2GiB.

    Raises ValueError for an invalid budget, and if there is none.
    """
    if not asked:
        raise ValueError(NO_BUDGET)
    whole = {"macs": profile.whole.macs, "params": profile.whole.params, "memory": memory_bytes(profile)}
    return {
        name: parse_budget(text, profile.whole.latency_s.median)
        if name == "latency"
        else _parse_amount(name, text, whole[name])
        for name, text in ((name, asked[name]) for name in BUDGETS if name in asked)
    }


def _below(value: float) -> str:
    """Four digits, rounded down, so that what is offered is accepted: 3.456, 859.5M, 3.438G."""
    for suffix in ("T", "G", "M", "k"):
        if value >= _SUFFIXES[suffix.lower()]:
            return _below(value / _SUFFIXES[suffix.lower()]) + suffix
    digits = 3 - math.floor(math.log10(value))
    return f"{math.floor(value * 10**digits) / 10**digits:.4g}"


_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _parse_amount(name: str, text: str, whole: int) -> float:
    word = text.strip().lower()
    suffix = next((s for s in sorted(_SUFFIXES, key=len, reverse=True) if word.endswith(s)), "")
    try:
        if word.endswith("%"):
            share = float(word[:-1]) / 100
        elif suffix:
            share = float(word.removesuffix(suffix)) * _SUFFIXES[suffix] / whole
        else:
            share = float(word)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        unit = "bytes" if name == "memory" else name
        raise ValueError(
            f"budget for {name} must be above 0 and at most the teacher's {_below(whole)} {unit}, got {text!r}: "
            "give a fraction (0.8), a percentage (80%) or an amount (650M, 2GiB)."
        )
    return share
