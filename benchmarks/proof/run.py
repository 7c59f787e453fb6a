"""The experiment: students of one teacher from different plans and recipes, with equal training, judged alike.

All rows see the same number of pictures with the same optimizer, schedule and seeds; the captions that are drawn were
held out of every training, and are drawn from the same noise. Results are saved after every student, and an interrupted
run resumes, in the middle of a training too. Latency is measured apart, when the machine is quiet (latency.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from asdm.distill.stages import meta_student
from asdm.measure import machine
from asdm.models import build, loading
from asdm.plan.edits import PruningPlan
from asdm.utils.io import utc_now
from asdm.utils.progress import Tell
from asdm.utils.settings import check_bounds
from asdm_prof.planner import plan as planner
from asdm_prof.records import Damage, Profile
from asdm_prof.search.named_locks import FileLocks, held
from benchmarks.proof.judging import ProofJudge
from benchmarks.proof.plans import plans_of
from benchmarks.proof.records import Proof, ProofResult, ProofRow
from benchmarks.proof.rows import ROWS, TEACHER, Row
from benchmarks.proof.settings import ProofSettings
from benchmarks.proof.training import resolved_recipe, train_and_judge


def prove(
    rows: Sequence[Row],
    seeds: Sequence[int],
    settings: ProofSettings,
    profile: Profile,
    damage: Damage,
    path: Path,
    folder: Path,
    force: bool = False,
    tell: Tell = lambda *_: None,
    command: str = "",
) -> Proof:
    """Train and judge every row from every seed that the proof in `path` lacks, one seed after another.

    Students, plans and checkpoints are kept in `folder`. Processes with the same settings share the work: each skips a
    student that another has under way. Raises ValueError if `path` holds another experiment.
    """
    check_bounds(settings)
    locks = FileLocks(folder / "locks")
    try:
        with held(locks, "proof"):
            plans = plans_of(rows, profile, damage, settings.budget, folder)
            judge = ProofJudge.of(settings, folder)
            new = _new_proof(settings, profile, damage, judge, rows, plans, folder, command)
            proof = new if force or not path.exists() else _resumed(path, new)
            proof.save(path, force=True)
            if not proof.rows[0].results:
                judge.with_teacher(proof, tell).save(path, force=True)
        for seed in seeds:
            for row in rows[1:]:
                if not locks.take(job := f"{row.name}-{seed}"):
                    continue
                if not _has(path, row, seed):
                    result = train_and_judge(row, seed, settings, judge, folder, _prefixed(tell, row, seed))
                    with held(locks, "proof"):
                        _with_result(Proof.load(path), row, result).save(path, force=True)
                locks.drop(job)
        return Proof.load(path)
    finally:
        locks.close()


def _has(path: Path, row: Row, seed: int) -> bool:
    saved = Proof.load(path).row(row.name)
    return saved is not None and seed in [result.seed for result in saved.results]


def _prefixed(tell: Tell, row: Row, seed: int) -> Tell:
    return lambda stage, count, eta_s: tell(f"{row.name}, seed {seed}: {stage}", count, eta_s)


def _with_result(proof: Proof, row: Row, result: ProofResult) -> Proof:
    """The proof with one more student, in the order of seeds."""
    rows = []
    for saved in proof.rows:
        results = (*saved.results, result) if saved.name == row.name else saved.results
        in_order = sorted(results, key=lambda each: each.seed or 0)
        rows.append(saved.model_copy(update={"results": tuple(in_order)}))
    return proof.model_copy(update={"rows": tuple(rows)})


def _new_proof(
    settings: ProofSettings,
    profile: Profile,
    damage: Damage,
    judge: ProofJudge,
    rows: Sequence[Row],
    plans: Mapping[str, PruningPlan],
    folder: Path,
    command: str,
) -> Proof:
    """The proof before any training: what each row is made of."""
    count = build.count(judge.family, judge.shapes)
    first = ProofRow(name=TEACHER, what=rows[0].what, plan_name="", recipe="", rival=None, ablates=None,
                     plan_sha256=None, edits=(), params=count.params, macs=count.total.macs,
                     predicted_ratio=None)  # fmt: skip
    return Proof(
        created_utc=utc_now(),
        command=command,
        family=judge.family.name,
        teacher_config_sha256=loading.unet_config_sha256(judge.shapes.config),
        weights_sha256=judge.weights_sha256,
        profile_sha256=profile.sha256(),
        damage_sha256=damage.sha256(),
        identity=settings.identity(),
        noise={},
        rows=(first, *(_new_row(row, plans[row.name], settings, profile, folder) for row in rows[1:])),
        environment=machine.environment("cpu", settings.threads or torch.get_num_threads()),
    )


def _new_row(row: Row, plan: PruningPlan, settings: ProofSettings, profile: Profile, folder: Path) -> ProofRow:
    recipe = resolved_recipe(row, settings, folder)
    student, _ = meta_student(recipe, recipe.stages[-1])
    count = build.count(recipe.family, student)
    try:
        predicted = planner.price(profile, plan.edits).ratio
    except ValueError:  # a replacement that the profile did not time
        predicted = None
    return ProofRow(
        name=row.name,
        what=row.what,
        plan_name=row.plan,
        recipe=row.recipe,
        rival=row.rival,
        ablates=row.ablates,
        plan_sha256=plan.sha256(),
        edits=plan.edits,
        params=count.params,
        macs=count.total.macs,
        predicted_ratio=predicted,
    )


def _resumed(path: Path, new: Proof) -> Proof:
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
    return saved.model_copy(update={"rows": tuple(rows[row.name] for row in ROWS if row.name in rows)})
