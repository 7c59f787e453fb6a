"""Predicted against measured latency on random legal plans: how far a profile's predictions can be trusted.

Each plan's student is built from the teacher's own tensors and measured interleaved with it. The errors give the width
of a prediction's interval and train a correction, which is used only if cross-validation shows that it helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t
from torch import nn

from asdm.measure import backends, clocks, machine, repeats, statistics
from asdm.measure.backends import Session
from asdm.measure.statistics import paired_ratio
from asdm.models import example_inputs, loading, student as students
from asdm.models.families import Family, load_family
from asdm.models.sources import weights_to_validate
from asdm.plan.edits import AnyEdit, PruningPlan
from asdm.plan.legality import resolve
from asdm.unet import blocks, flops
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of
from asdm.utils.settings import check_bounds
from asdm_prof.planner import plan as planner
from asdm_prof.planner.problem import Problem
from asdm_prof.planner.settings import ValidateSettings
from asdm_prof.planner.validation_run import check_profile, complete
from asdm_prof.records import Correction, Profile, ValidatedPlan, Validation
from asdm_prof.records.validation import ValidationRun

FASTEST, SLOWEST = 0.40, 0.95  # of the teacher's latency: where plans are drawn
CONFIDENCE = 0.95
SHRINKAGE = 0.01  # (σ of an error / σ of a factor)² before anything is known: 1 % of the teacher, 10 % of a saving


def validate(
    family: str | Family,
    profile: Profile,
    settings: ValidateSettings = ValidateSettings(),
    run_file: Path | None = None,
    tell: Tell = lambda *_: None,
    command: str = "",
) -> Validation:
    """Measure `settings.plans` random students of a profile's teacher; an unfinished run in `run_file` is resumed.

    Raises ValueError for a profile of another model, too few plans, too little memory, or another run's file.
    """
    family = load_family(family, settings.config) if isinstance(family, str) else family
    check_bounds(settings)
    check_profile(profile, family)
    measuring = {name: value for name, value in vars(settings).items() if name != "config"}  # the profile has its hash
    run_sha256 = sha256_of([profile.sha256(), measuring])
    run = ValidationRun(run_sha256=run_sha256).resumed_from(run_file, "profile")
    plans = draw_plans(profile, settings.plans, settings.seed)
    rest = _measure(family, profile, settings, plans[len(run.plans) :], tell)
    run, about = complete(run, rest, run_file, profile, family)
    return Validation(
        **about,
        command=command,
        weights=weights_to_validate(family, settings.weights, profile.weights),
        seed=settings.seed,
        teacher_config_sha256=profile.config_sha256,
        plans=run.plans,
        **judge(run.plans),
    )


# ---------------------------------------------------------------------------------------------- plans


def draw_plans(profile: Profile, n: int, seed: int) -> list[tuple[AnyEdit, ...]]:
    """`n` random legal plans, one in each of `n` equal steps from 95 to 40 % of the teacher or the lowest reachable."""
    problem = Problem.of(profile)
    lowest = max(FASTEST, planner.reachable(problem, "latency"))
    if lowest >= SLOWEST:
        raise ValueError(
            f"no legal plan is faster than {lowest:.2f} of {profile.family}; there is nothing to validate."
        )
    targets = SLOWEST - (SLOWEST - lowest) * (np.arange(n) + 0.5) / n
    rng = np.random.default_rng(seed)
    return [planner.draw_plan(problem, float(target), rng) for target in targets]


# ---------------------------------------------------------------------------------------------- measuring


def _measure(
    family: Family, profile: Profile, settings: ValidateSettings, plans: Sequence[tuple[AnyEdit, ...]], tell: Tell
) -> Iterator[ValidatedPlan]:
    """Each student interleaved with its teacher, A B B A, so that drift affects both alike."""
    if not plans:
        return
    clock, wall = clocks.clock_for(profile.device), clocks.HostClock()
    backend = backends.load(profile.backend, profile.dtype, profile.device)
    shapes = loading.meta_unet(family, profile.dtype)
    _require_memory(family, profile, shapes, backend)
    tell("building the teacher", 0, None)
    weights = weights_to_validate(family, settings.weights, profile.weights)
    where = (profile.device, profile.dtype, profile.seed)
    teacher = loading.load_unet(family, weights, *where) if backend.NEEDS_WEIGHTS else shapes
    inputs = example_inputs.unet_inputs(family, profile.batch, profile.size, *where)

    def session_of(unet: nn.Module) -> Session:
        return backend.open_session(unet, inputs, list(blocks.iter_parts(unet)), clock)

    tell("warming up the teacher", 0, None)
    first = session_of(teacher)
    repeats.warm_up(first.run, budget_s=settings.time_budget_s / 3)
    began = wall.mark()
    for n, edits in enumerate(plans):
        plan = resolve(profile.topology, PruningPlan(family=family.name, edits=edits))
        predicted = planner.price(profile, plan)
        stage = f"plan {settings.plans - len(plans) + n + 1} of {settings.plans}, predicted {predicted.ratio:.2f}"
        each = wall.seconds(began, wall.mark()) / n if n else settings.time_budget_s
        after = each * (len(plans) - n - 1)
        tell(f"{stage}: building", 0, after + each)
        student, _ = students.build(teacher, plan)
        second = session_of(student)
        repeats.warm_up(second.run, at_least=2, budget_s=settings.time_budget_s / 10)
        samples = repeats.interleave(
            {"teacher": first.run, "student": second.run},
            ("teacher", "student", "student", "teacher"),
            wall,
            settings.min_rounds,
            budget_s=settings.time_budget_s,
            enough=lambda s: _half_width(s) <= settings.target,
            progress=partial(lambda stage, after, calls, eta_s: tell(stage, calls, eta_s + after), stage, after),
            floor_s=repeats.least_seconds(profile.device),
        )
        del second, student  # before the next one is built: a runtime may hold its own copy of the weights
        measured = paired_ratio(samples["student"], samples["teacher"])
        yield ValidatedPlan(
            predicted_ratio=predicted.ratio,
            low=predicted.low,
            high=predicted.high,
            measured_ratio=measured.median,
            measured_low=measured.low,
            measured_high=measured.high,
            saves=planner.saved_by_kind(profile, plan),
            teacher_s=tuple(samples["teacher"]),
            student_s=tuple(samples["student"]),
            edits=edits,
        )


def _half_width(samples: dict[str, list[float]]) -> float:
    ratio = paired_ratio(samples["student"], samples["teacher"])
    return (ratio.high - ratio.low) / 2


def _require_memory(family: Family, profile: Profile, shapes: nn.Module, backend: Any) -> None:
    if not backend.NEEDS_WEIGHTS:
        return
    counted = flops.count(
        shapes, (), example_inputs.unet_inputs(family, profile.batch, profile.size, "meta", profile.dtype)
    )
    session = backends.session_bytes(backend, counted.parameter_bytes, counted.peak_memory_bytes)
    sessions = 2 * session  # teacher and one student; in torch the student shares the teacher's
    need = int(1.1 * counted.peak_memory_bytes) + sessions + machine.SPARE_BYTES
    machine.require_memory(need, profile.device, f"validating {family.name} in {profile.dtype}",
                           "a profile with a smaller --batch, --size or --dtype")  # fmt: skip


# ---------------------------------------------------------------------------------------------- judging


def judge(plans: Sequence[ValidatedPlan]) -> dict[str, Any]:
    """The figures of `asdm.validate/1` from the measured plans."""
    errors = np.array([plan.error for plan in plans])
    correction = learn(plans)
    left_out = [_without(plans, i) for i in range(len(plans))]
    return {
        "mape": float(np.abs(errors).mean()),
        "p95": float(np.quantile(np.abs(errors), 0.95)),
        "bias": float(errors.mean()),
        "coverage": float(np.mean([plan.low <= plan.measured_ratio <= plan.high for plan in plans])),
        "rank_correlation": statistics.spearman(
            [plan.predicted_ratio for plan in plans], [plan.measured_ratio for plan in plans]
        ),
        "correction": correction,
        "sigma": _sigma(correction),
        "calibrated_coverage": float(np.mean([abs(off) <= spread(0.975) for off, spread in left_out])),
        "within_budget": float(np.mean([off <= spread(CONFIDENCE) for off, spread in left_out])),
    }


def learn(plans: Sequence[ValidatedPlan]) -> Correction:
    """A factor for each kind of edit by ridge regression of the errors on the savings, tested by leave-one-out."""
    kinds = sorted({kind for plan in plans for kind in plan.saves})
    saves = np.array([[plan.saves.get(kind, 0.0) for kind in kinds] for plan in plans])  # (plans, kinds)
    errors = np.array([plan.error for plan in plans])
    others = ~np.eye(len(plans), dtype=bool)
    left = [errors[i] - saves[i] @ _ridge(saves[rest], errors[rest]) for i, rest in enumerate(others)]
    without, with_ = _rms(errors), _rms(np.array(left))
    return Correction(
        factors=dict(zip(kinds, map(float, _ridge(saves, errors)), strict=True)),
        rms_without=without,
        rms_with=with_,
        helps=with_ < without,
    )


def _ridge(saves: np.ndarray, errors: np.ndarray) -> np.ndarray:
    return np.linalg.solve(saves.T @ saves + SHRINKAGE * np.eye(saves.shape[1]), saves.T @ errors)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def _sigma(correction: Correction) -> float:
    return correction.rms_with if correction.helps else correction.rms_without


def _without(plans: Sequence[ValidatedPlan], i: int) -> tuple[float, Callable[[float], float]]:
    """Plan `i` judged by the others alone: its error after their correction, and the interval width that they give."""
    plan, others = plans[i], [*plans[:i], *plans[i + 1 :]]
    correction = learn(others)
    factors = correction.factors if correction.helps else {}
    off = plan.error - sum(factors.get(kind, 0.0) * saved for kind, saved in plan.saves.items())
    return off, lambda confidence: float(student_t.ppf(confidence, len(others))) * _sigma(correction)
