"""What a search concludes (`asdm.search/1`), from its study alone: every worker writes the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from asdm.measure import machine
from asdm.models import loading
from asdm.plan.edits import PruningPlan
from asdm.records.bench import Metric
from asdm.records.measurement import Estimate
from asdm.utils import io
from asdm_prof.records import Rung, Search, SearchedStudent
from asdm_prof.search.context import SearchContext
from asdm_prof.search.halving import Job
from asdm_prof.search.study import SharedStudy


def conclude(context: SearchContext, study: SharedStudy, command: str) -> Search:
    """The record of a search whose rungs have ended."""
    known, settings = study.settings, context.settings
    students = _mark_front(list(_students(context, study)), settings.metric, study.maximise)
    halving, attempts = study.halving, study.attempts()
    return Search(
        created_utc=io.utc_now(),
        command=command,
        family=context.family.name,
        weights=loading.weights_name(context.family, context.weights),
        **{name: known[f"timed_{name}"] for name in ("backend", "dtype", "device", "threads", "batch")},
        **{name: known[name] for name in ("size", "teacher_config_sha256", "profile_sha256", "damage_sha256")},
        **{name: getattr(settings, name) for name in ("seed", "budget", "metric", "recipe", "data", "split")},
        study=study.optuna_study.study_name,
        weights_sha256=known["teacher_sha256"],
        budget_ratio=known["budget_ratio"],
        maximise=study.maximise,
        learning_rate=settings.learning_rate,
        training_batch=settings.batch,
        pictures=settings.prompts,
        rungs=tuple(Rung(candidates=size, steps=halving.steps_until(n)) for n, size in enumerate(halving.sizes)),
        training_steps=sum(halving.steps_of(attempt.job) for attempt in attempts if attempt.fate == "done"),
        trials={fate: sum(one.fate == fate for one in attempts) for fate in ("done", "diverged", "left", "died")},
        students=students,
        failed=_failures(study, {student.candidate for student in students}),
        environment=machine.environment(settings.device, int(known["threads"])),
    )


def _students(context: SearchContext, study: SharedStudy) -> Iterator[SearchedStudent]:
    """Every candidate's last measurement: the last rung first, and within a rung the best first."""
    trials = {(trial.params["rung"], trial.params["candidate"]): trial for trial in study.measured_trials()}
    measured = {attempt.job: attempt for attempt in study.attempts() if attempt.fate == "done"}
    listed: set[int] = set()
    for job in sorted(measured, key=lambda job: (-job.rung, measured[job].rank)):
        if job.candidate not in listed:
            listed.add(job.candidate)
            yield _student(context, study, job, trials[job.rung, job.candidate], measured[job].over_budget)


def _student(context: SearchContext, study: SharedStudy, job: Job, trial: Any, over_budget: float) -> SearchedStudent:
    plan = PruningPlan.parse(study.plans[job.candidate], f"candidate {job.candidate}")
    latency, quality = trial.user_attrs["latency"], trial.user_attrs["quality"]
    assert plan.predicted is not None, "every candidate was planned on a profile"
    return SearchedStudent(
        candidate=job.candidate,
        rung=job.rung,
        steps=study.halving.steps_until(job.rung),
        edits=plan.edits,
        plan_sha256=plan.sha256(),
        predicted=plan.predicted,
        damage=study.settings["damages"][job.candidate],
        ratio=Estimate(**latency["ratio"]),
        student_s=tuple(latency["student_s"]),
        teacher_s=tuple(latency["teacher_s"]),
        macs=latency["macs"],
        params=latency["params"],
        quality={name: Metric(**metric) for name, metric in quality.items()},
        within_budget=over_budget <= 0,
        in_front=False,
        host=trial.user_attrs["host"],
        folder=str(context.student_folder(job).relative_to(context.output)),
    )


def _mark_front(students: Sequence[SearchedStudent], metric: str, maximise: bool) -> tuple[SearchedStudent, ...]:
    """The students, marked where no other is at least as good in both latency and quality and better in one."""
    sign = -1 if maximise else 1
    points = [(student.ratio.median, sign * student.quality[metric].value) for student in students]

    def dominated(point: tuple[float, float]) -> bool:
        return any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)

    return tuple(
        student.model_copy(update={"in_front": not dominated(point)})
        for student, point in zip(students, points, strict=True)
    )


def _failures(study: SharedStudy, measured: set[int]) -> dict[str, str]:
    """Why candidates have no measurement."""
    return {
        str(attempt.job.candidate): str(trial.user_attrs.get("why", "its worker died each time"))
        for trial, attempt in zip(study.trials(), study.attempts(), strict=True)
        if attempt.job.candidate not in measured and attempt.fate in ("diverged", "died")
    }
