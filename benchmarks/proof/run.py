"""The experiment: students of one teacher from different plans and recipes, with equal training, judged alike.

All rows see the same number of pictures with the same optimizer, schedule and seeds, ablations half as many; captions
of training and held-out ones are drawn, all from the same noise. Results are saved after every student, and an
interrupted run resumes, in the middle of a training too. Latency is measured apart, when all is quiet (`time_rows`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from asdm.distill.settings import UnitSettings
from asdm.distill.stages import meta_student
from asdm.distill.units import distill_units
from asdm.evaluate import benchmark
from asdm.evaluate.settings import BenchSettings
from asdm.measure import machine, statistics
from asdm.models import build, loading
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of, utc_now
from asdm.utils.settings import check_bounds
from asdm_prof.records import Damage, Profile
from asdm_prof.search.study import FileLocks, held
from benchmarks import baselines
from benchmarks.proof.records import Proof, ProofLatency, ProofResult, ProofRow, ProofTiming
from benchmarks.proof.rows import TEACHER, ProofSettings, Row, all_rows, plan_file, plans_of, units_folder
from benchmarks.proof.training import ProofJudge, train_and_judge

NO_LIMIT = 1e9  # seconds


def prove(
    rows: Sequence[Row],
    seeds: Sequence[int],
    settings: ProofSettings,
    profile: Profile,
    damage: Damage,
    path: Path,
    folder: Path,
    force: bool,
    tell: Tell,
    command: str,
) -> Proof:
    """Train and judge every row from every seed that the proof in `path` lacks, one seed after another.

    Students, plans and checkpoints are kept in `folder`. Processes with the same settings share the work: each skips a
    student that another has under way. Raises ValueError if `path` holds another experiment.
    """
    check_bounds(settings)
    locks = FileLocks(folder / "locks")
    try:
        with held(locks, "proof"):
            judge = ProofJudge(settings, folder)
            if profile.weights_sha256 not in (None, judge.weights_sha256):
                theirs, own = profile.weights_sha256[:12], judge.weights_sha256[:12]
                raise ValueError(f"the profile is of weights {theirs}, but {settings.family} has {own}.")
            new = _new_proof(judge, profile, damage, rows, command)
            proof = new if force or not path.exists() else _resumed(path, new, settings)
            proof.save(path, force=True)
            if not proof.rows[0].results:
                judge.with_teacher(proof, tell).save(path, force=True)
        for seed, row in itertools.product(seeds, rows[1:]):
            if not locks.take(job := f"{row.name}-{seed}"):
                continue
            done = {(saved.name, result.seed) for saved in Proof.load(path).rows for result in saved.results}
            if (row.name, seed) not in done:
                if row.fitted:
                    with held(locks, f"{row.name}-units"):
                        _fit_units(row, judge, tell, command)
                result = train_and_judge(row, seed, judge, tell)
                with held(locks, "proof"):
                    _with_result(Proof.load(path), row, result).save(path, force=True)
            locks.drop(job)
        return Proof.load(path)
    finally:
        locks.close()


def _fit_units(row: Row, judge: ProofJudge, tell: Tell, command: str) -> None:
    """Choose and refit what a row's replaced units keep, on calibration data; units that are there are kept."""
    own = judge.settings
    settings = UnitSettings(data=own.data, split=own.split, threads=own.threads)
    plan, place = PruningPlan.load(plan_file(row, judge.folder)), units_folder(row, judge.folder)

    def progress(stage: str, count: int, eta_s: float | None) -> None:
        tell(f"{row.name}: {stage}", count, eta_s)

    if any(isinstance(edit, ReplaceUnit) for edit in plan.edits):
        distill_units(own.family, place, settings, [plan], progress, command)


def _with_result(proof: Proof, row: Row, result: ProofResult) -> Proof:
    """The proof with one more student, in the order of seeds."""
    rows = {saved.name: saved for saved in proof.rows}
    results = sorted((*rows[row.name].results, result), key=lambda each: each.seed or 0)
    rows[row.name] = rows[row.name].model_copy(update={"results": tuple(results)})
    return proof.model_copy(update={"rows": tuple(rows.values())})


def _new_proof(judge: ProofJudge, profile: Profile, damage: Damage, rows: Sequence[Row], command: str) -> Proof:
    """The proof before any training: what each row is made of, with every plan saved in the judge's folder."""
    plans = plans_of(rows, profile, damage, judge.folder)
    teacher = loading.meta_unet(judge.family)
    count = build.count(judge.family, teacher)
    first = ProofRow(name=TEACHER, what=rows[0].what, params=count.params, macs=count.total.macs)
    return Proof(
        created_utc=utc_now(),
        command=command,
        family=judge.family.name,
        teacher_config_sha256=loading.unet_config_sha256(teacher.config),
        weights_sha256=judge.weights_sha256,
        profile_sha256=profile.sha256(),
        damage_sha256=damage.sha256(),
        identity=judge.settings.identity(),
        noise={},
        rows=(first, *(_new_row(row, plans[row.name], judge, profile) for row in rows[1:])),
        splits=judge.splits,
        environment=machine.environment("cpu", judge.settings.threads or torch.get_num_threads()),
    )


def _new_row(row: Row, plan: PruningPlan, judge: ProofJudge, profile: Profile) -> ProofRow:
    recipe = judge.resolved_recipe(row)
    student, _ = meta_student(recipe, recipe.stages[-1])
    count = build.count(recipe.family, student)
    return ProofRow(
        **{name: getattr(row, name) for name in ("name", "what", "recipe", "rival", "ablates")},
        plan_name=row.plan,
        plan_sha256=plan.sha256(),
        edits=plan.edits,
        params=count.params,
        macs=count.total.macs,
        predicted_ratio=baselines.predicted_ratio(profile, plan.edits),
    )


def _resumed(path: Path, new: Proof, settings: ProofSettings) -> Proof:
    """The proof in `path` with the rows it lacks; raises ValueError if it is another experiment's."""
    saved = Proof.load(path)
    hashes = ("weights_sha256", "profile_sha256", "damage_sha256")
    ours, theirs = ({**proof.identity, **{name: getattr(proof, name) for name in hashes}} for proof in (new, saved))
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{path} holds another experiment: its {name} is {theirs.get(name)}, not {value}; choose another "
                "--output, or add --force to discard it."
            )
    saved_rows = {row.name: row for row in saved.rows}
    for row in new.rows:
        if row.name in saved_rows and row.plan_sha256 != saved_rows[row.name].plan_sha256:
            raise ValueError(
                f"the row {row.name} in {path} has another plan; choose another --output, or add --force to discard it."
            )
    rows = {row.name: row for row in new.rows} | saved_rows
    order = [row.name for row in all_rows(settings)]
    kept = tuple(rows[name] for name in order if name in rows)
    return saved.model_copy(update={"rows": kept, "splits": new.splits})


# ---------------------------------------------------------------------------------------------- latency


def time_rows(
    proof: Proof, settings: ProofSettings, folder: Path, backend: str, pairs: int, tell: Tell, command: str
) -> Proof:
    """The proof with every row's latency: each plan's student, with the teacher's weights, in pairs with the teacher.

    Rows of one plan are timed once. The machine should be otherwise idle.
    """
    if pairs < 4:
        raise ValueError(f"pairs must be at least 4, got {pairs}.")
    shapes = {  # the edits alone decide a student's latency
        row.name: sha256_of([edit.model_dump(mode="json", by_alias=True) for edit in row.edits])
        for row in proof.rows[1:]
    }
    first_rows = {sha256: name for name, sha256 in reversed(shapes.items())}
    result = benchmark.bench(
        settings.family,
        [str(folder / "plans" / f"{name}.json") for name in first_rows.values()],
        BenchSettings(
            backend=backend,
            threads=settings.threads,
            guidance_scale=1.0,
            min_rounds=math.ceil(pairs / 2),
            time_budget_s=NO_LIMIT,
            target=NO_LIMIT,
        ),
        tell,
        command,
    )
    latencies = {}
    for sha256, student in zip(first_rows, result.students, strict=True):
        student_s, teacher_s = student.unet_latency_s.samples, student.paired_teacher_latency_s.samples
        mean_ratio = statistics.estimate(np.divide(student_s, teacher_s), np.mean)
        latencies[sha256] = ProofLatency(plan_sha256=sha256, ratio=student.unet_latency_ratio, mean_ratio=mean_ratio,
                                         student_s=student_s, teacher_s=teacher_s)  # fmt: skip
    first, *others = proof.rows
    rows = (first, *(row.model_copy(update={"latency": latencies[shapes[row.name]]}) for row in others))
    timing = ProofTiming(created_utc=result.created_utc, command=command, backend=backend, threads=result.threads,
                         batch=result.batch, environment=result.environment)  # fmt: skip
    return proof.model_copy(update={"rows": rows, "timing": timing})
