"""Search: many candidates are built, timed and trained a little, the better half longer, and so on.

    frontier ──► candidates ──► time, train, judge ──► the better half ──► time … ──► search.json
    k diverse plans             one trial of the study  trains on from its checkpoint

Any number of workers share a search, one process each. A candidate is one run of `asdm distill` that pauses at the end
of every rung, so a survivor equals, bit by bit, a student trained in one go. Latencies are ratios to the teacher,
measured in pairs in one process; a worker on another kind of machine is refused, so they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from asdm.data import datasets
from asdm.data.choice import data_for, is_emoji
from asdm.data.drawn import drawn
from asdm.data.identity import SAMPLE, earlier_identity, identity as data_identity
from asdm.measure import machine
from asdm.models import example_inputs, loading
from asdm.models.families import Family
from asdm.models.settings import checkpoint_of
from asdm.models.sources import family_of, weights_of
from asdm.plan.edits import PruningPlan
from asdm.records.bench import MEASURES, Metric
from asdm.records.measurement import Estimate, device_kind
from asdm.utils import console, io, sizes
from asdm.utils.progress import Tell
from asdm.utils.record import utc_now
from asdm.utils.runs import short_name
from asdm_prof.analysis.diff import MACHINE
from asdm_prof.planner import frontier, plan as planner
from asdm_prof.planner.budgets import parse_budget
from asdm_prof.records import Damage, FrontierPoint, Profile, Rung, Search, SearchedStudent
from asdm_prof.search.checks import check, check_judging
from asdm_prof.search.settings import SearchSettings, WorkerSettings
from asdm_prof.search.study import SharedStudy, open_study
from asdm_prof.search.worker import SearchContext, Worker

RESULT = "search.json"
_IN_HASH = ("weights", "config", "variant")  # what the hash of the teacher tells


def search(
    teacher: str,
    settings: SearchSettings,
    output: Path,
    make_profile: Callable[[], Profile],
    profile: Profile | None = None,
    damage: Damage | None = None,
    own: WorkerSettings = WorkerSettings(),
    progress: Callable[[], AbstractContextManager[Tell]] = lambda: nullcontext(lambda *_: None),
    command: str = "asdm-prof search",
) -> Search:
    """Work on a search until all of it is done, and write `search.json`; other workers may share it meanwhile.

    A new study plans its candidates on `profile`, or on `make_profile()` where none is named; an existing one must have
    been planned on `profile` and `damage`. Raises ValueError for bad settings, Infeasible where no plan is fast enough.
    """
    family = family_of(teacher, settings)
    weights = weights_of(family, settings, needs="asdm-prof search")
    check(family, settings)
    side = example_inputs.latent_size(family, None) * family.vae_factor
    named = data_for(settings.data, family, "asdm-prof search")
    data = drawn(named, family, replace(settings, weights=weights), side, settings.device)
    metric = settings.metric or ("perceptual_to_teacher" if is_emoji(data) else "latent_mse_to_teacher")
    settings = replace(settings, data=data, metric=metric)
    check_judging(family, settings, named)
    io.make_folder(output)
    context = SearchContext(family, teacher, settings, output)
    pictures = open_pictures(context)
    shared = identity(context, pictures) | ({"profile_sha256": profile.sha256()} if profile else {})
    shared |= {"damage_sha256": damage.sha256()} if damage else {}
    name = own.study or f"{short_name(teacher)}-{settings.budget}"

    def begin() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with context.host.timing():
            planned_on = profile or make_profile()
        return new_study(family, settings, planned_on, damage)

    maximise = MEASURES[metric].more_is_better
    earlier = earlier_identity(pictures) | {SAMPLE: None}  # which earlier versions did not take
    with open_study(own.storage, name, output, shared, maximise, begin, earlier) as study:
        with progress() as tell:
            Worker(context, study, own.checkpoint_s, tell).run()
        with study.exclusive():
            result = conclude(context, study, console.without_password(command))
            result.save(output / RESULT, force=True)
    return result


def open_pictures(context: SearchContext) -> Any:
    """The pictures of a search."""
    return datasets.open_source(str(context.settings.data), context.settings.split, context.pixels())


def identity(context: SearchContext, pictures: Any) -> dict[str, Any]:
    """What all workers of a study share: settings, teacher, pictures however they are named, and kind of machine."""
    settings = context.settings
    teacher = loading.load_unet(
        context.family, context.weights, settings.device, "fp32", settings.seed, settings.variant, settings.lora
    )
    facts = machine.environment(settings.device, settings.threads or torch.get_num_threads())
    return {
        **{key: value for key, value in asdict(settings).items() if key not in (*checkpoint_of(settings), "data")},
        **{key: value for key, value in checkpoint_of(settings).items() if key not in _IN_HASH and value is not None},
        "device": device_kind(settings.device),  # workers may have a card each, all of one name
        "threads": facts["threads"],
        "teacher_config_sha256": loading.unet_config_sha256(loading.meta_unet(context.family).config),
        "teacher_sha256": loading.weights_sha256(teacher),
        **data_identity(pictures),
        **{name: facts[name] for name in MACHINE if name in facts},
    }


# ---------------------------------------------------------------------------------------------- candidates


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
    if not isinstance(profile.size, int):
        raise ValueError(
            f"a search trains on squares, and its profile is of {sizes.shown(profile.size)} pixels; name another "
            "(--profile)."
        )
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
    n = len(points)
    are = "is only 1 plan" if n == 1 else f"are only {n} plans"
    rungs = f" with --rungs {n.bit_length()}" if 0 < n < 2 ** (settings.rungs - 1) else ""
    fewer = f"choose --candidates {n}{rungs}, or a higher --budget" if n else "choose a higher --budget"
    raise ValueError(f"there {are} within the budget {settings.budget} for {settings.candidates} candidates; {fewer}.")


# ---------------------------------------------------------------------------------------------- result


def conclude(context: SearchContext, study: SharedStudy, command: str) -> Search:
    """The record of a search whose rungs have ended, from its study alone: every worker writes the same."""
    known, settings = study.settings, context.settings
    students = _mark_front(list(_students(context, study)), str(settings.metric), study.maximise)
    halving, attempts = study.halving, study.attempts()
    return Search(
        created_utc=utc_now(),
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
        if job.candidate in listed:
            continue
        listed.add(job.candidate)
        facts = trials[job.rung, job.candidate].user_attrs
        plan = PruningPlan.parse(study.plans[job.candidate], f"candidate {job.candidate}")
        assert plan.predicted is not None, "every candidate was planned on a profile"
        yield SearchedStudent(
            candidate=job.candidate,
            rung=job.rung,
            steps=study.halving.steps_until(job.rung),
            edits=plan.edits,
            plan_sha256=plan.sha256(),
            predicted=plan.predicted,
            damage=study.settings["damages"][job.candidate],
            ratio=Estimate(**facts["latency"]["ratio"]),
            **{name: facts["latency"][name] for name in ("student_s", "teacher_s", "macs", "params")},
            quality={name: Metric(**metric) for name, metric in facts["quality"].items()},
            within_budget=measured[job].over_budget <= 0,
            in_front=False,
            host=facts["host"],
            folder=str(context.student_folder(job).relative_to(context.output)),
        )


def _mark_front(students: Sequence[SearchedStudent], metric: str, maximise: bool) -> tuple[SearchedStudent, ...]:
    """The students, marked where no other is at least as good in both latency and quality and better in one."""
    sign = -1 if maximise else 1
    points = [(student.ratio.median, sign * student.quality[metric].value) for student in students]

    def dominated(point: tuple[float, float]) -> bool:
        return any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)

    marked = zip(students, points, strict=True)
    return tuple(student.model_copy(update={"in_front": not dominated(point)}) for student, point in marked)


def _failures(study: SharedStudy, measured: set[int]) -> dict[str, str]:
    """Why candidates have no measurement."""
    return {
        str(attempt.job.candidate): str(trial.user_attrs.get("why", "its worker died each time"))
        for trial, attempt in zip(study.trials(), study.attempts(), strict=True)
        if attempt.job.candidate not in measured and attempt.fate in ("diverged", "died")
    }
