"""Students of one teacher made in several ways from equal training, judged on captions and by a network none has seen.

A row is data: where its plan comes from, which recipe trains it, and what is changed of both. Rows have alike the
pictures seen, the optimizer, the schedule and the seeds of everything random; the captions that are drawn were held out
of every training, and are drawn from the same noise. What is done is kept after every student, and an interrupted run
goes on where it was, in the middle of a training too.

Latency does not depend on what a student has learnt, so it is measured apart, plan by plan in pairs with the teacher,
when the machine is quiet: `time_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from asdm.data import datasets
from asdm.distill import recipes
from asdm.distill.context import TrainProgress
from asdm.distill.dry_run import preview_stage
from asdm.distill.run import distill
from asdm.distill.settings import DistillSettings
from asdm.distill.stages import Recipe, ResolvedRecipe, meta_student, resolve_recipe
from asdm.evaluate import benchmark, quality
from asdm.evaluate.generation import GeneratedImages, generate_images
from asdm.evaluate.metrics import Samples
from asdm.evaluate.settings import BenchSettings
from asdm.measure import machine, statistics
from asdm.models import build, loading, networks
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.plan import presets
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.utils import registry
from asdm.utils.io import sha256_of, utc_now, write_whole
from asdm.utils.progress import Tell
from asdm_prof.planner import plan as planner
from asdm_prof.records import Damage, Profile
from asdm_prof.search.named_locks import FileLocks, held
from benchmarks import baselines
from benchmarks.proof.records import Judged, Proof, ProofLatency, ProofResult, ProofRow, ProofTiming

TEACHER = "teacher"
PLANNED, BK_STYLE = "planned", "bk_style"


@dataclass(frozen=True)
class Row:
    """One way to make a student.

    `plan` is a preset; "planned" (the least measured damage within the budget), or "planned=PRESET" (at that preset's
    latency); or "bk_style" (BK-SDM's rule at the latency of "planned"). Equal latency is by the profile; what was
    measured stands beside it.
    """

    name: str
    what: str
    plan: str = ""
    recipe: str = ""
    without: tuple[str, ...] = ()  # replacements that are left out of the plan
    mode: str | None = None
    weights: Mapping[str, float] | None = None
    normalise: bool | None = None
    rival: str | None = None  # the row at the same latency that it is to be compared with
    ablates: str | None = None  # the row that it is but for one thing

    def stages(self) -> Recipe:
        return recipes.adjust(recipes.load(self.recipe), self.mode, self.weights, self.normalise)


PAPER = Row("a_sdm", "the paper’s assembly and recipe", "a_sdm_clme", "progressive_incubation")
OURS = Row("ours", "planned on measured damage, everything learns, features in the teacher’s units", PLANNED, "bk_sdm",
           normalise=True, rival="bk_sdm")  # fmt: skip
ROWS = (
    Row(TEACHER, "the teacher"),
    Row("bk_sdm", "BK-SDM’s rule at our latency, BK-SDM’s recipe", BK_STYLE, "bk_sdm"),
    Row("bk_sdm_base", "BK-SDM-Base, BK-SDM’s recipe", "bk_sdm_base", "bk_sdm"),
    PAPER,
    OURS,
    replace(OURS, name="ours_at_base", what="as ours, at the latency of BK-SDM-Base", plan=f"{PLANNED}=bk_sdm_base",
            rival="bk_sdm_base"),
    replace(OURS, name="ours_raw", what="with BK-SDM’s own recipe, features summed raw", normalise=None, rival=None,
            ablates="ours"),
    replace(PAPER, name="no_stage1", what="without stage 1", recipe="without_incubation", ablates="a_sdm"),
    replace(PAPER, name="no_clme", what="without CLME", plan="a_sdm", ablates="a_sdm"),
    replace(PAPER, name="gate_timestep", what="gates on the timestep instead of the input", plan="a_sdm_clme_timestep",
            ablates="a_sdm"),
    replace(PAPER, name="no_gri", what="without GRI", without=("gri_attention",), ablates="a_sdm"),
    replace(PAPER, name="no_mid_block", what="without the mid-block loss", weights={"mid_block": 0.0}, ablates="a_sdm"),
    replace(PAPER, name="no_vgg", what="without the VGG loss", weights={"perceptual": 0.0}, ablates="a_sdm"),
    replace(PAPER, name="blockwise", what="blockwise instead of end to end", mode="blockwise", ablates="a_sdm"),
)  # fmt: skip


def chosen_rows(names: Sequence[str] = ()) -> tuple[Row, ...]:
    """Rows by name, in their own order and with the teacher; all of them where none is named.

    Raises ValueError for an unknown name.
    """
    known = [row.name for row in ROWS]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}.")
    return tuple(row for row in ROWS if not names or row.name in names or row.name == TEACHER)


@dataclass(frozen=True)
class ProofSettings:
    """What all rows have alike. `captions` None: all that the judging split has."""

    family: str = "mini"
    data: str = "emoji"
    split: str = "train"
    judged_on: str = "held_out"
    budget: str = "0.78"
    steps: int = 400
    batch: int = 16
    learning_rate: float = 3e-4
    dtype: str = "fp32"
    captions: int | None = None
    drawing_steps: int = 20
    threads: int | None = None

    def check(self) -> None:
        """Raises ValueError naming the first setting that cannot be."""
        for name, least in (("steps", 2), ("drawing_steps", 1), ("captions", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} {value} is too few; choose {least} or more.")

    def identity(self) -> dict[str, Any]:
        """What decides the outcome."""
        return {name: value for name, value in vars(self).items() if name not in ("family", "threads")}

    def training(self, seed: int) -> DistillSettings:
        return DistillSettings(
            data=self.data,
            split=self.split,
            steps=self.steps,
            seed=seed,
            batch=self.batch,
            learning_rate=self.learning_rate,
            dtype=self.dtype,
            threads=self.threads,
        )


# ---------------------------------------------------------------------------------------------- the experiment


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
    """Train and judge every row from every seed, but for what the proof in `path` has already; one seed after another.

    Students, plans and checkpoints are kept in `folder`. Processes that are given the same share the work: a student
    that another one has under way is left to it. Raises ValueError where `path` holds another experiment.
    """
    settings.check()
    locks = FileLocks(folder / "locks")
    try:
        with held(locks, "proof"):
            plans = plans_of(rows, profile, damage, settings.budget, folder)
            with_teacher = Bench.of(settings, folder)
            proof = _opened(path, _begun(settings, profile, damage, with_teacher, rows, plans, folder, command), force)
            proof.save(path, force=True)
            if not proof.rows[0].results:
                with_teacher.judged(proof, tell).save(path, force=True)
        for seed in seeds:
            for row in rows[1:]:
                if not locks.take(job := f"{row.name}-{seed}"):
                    continue
                if not _has(path, row, seed):
                    made = _student(row, seed, settings, with_teacher, folder, partial(_with_row, tell, row.name, seed))
                    with held(locks, "proof"):
                        _with(Proof.load(path), row, made).save(path, force=True)
                locks.drop(job)
        return Proof.load(path)
    finally:
        locks.close()


def _has(path: Path, row: Row, seed: int) -> bool:
    found = Proof.load(path).row(row.name)
    return found is not None and seed in [result.seed for result in found.results]


def _with_row(tell: Tell, row: str, seed: int, stage: str, calls: int, eta_s: float | None) -> None:
    tell(f"{row}, seed {seed}: {stage}", calls, eta_s)


def _with(proof: Proof, row: Row, made: ProofResult) -> Proof:
    """The proof with one student more, in the order of seeds."""
    rows = []
    for old in proof.rows:
        results = sorted((*old.results, made), key=lambda one: one.seed or 0) if old.name == row.name else old.results
        rows.append(old.model_copy(update={"results": tuple(results)}))
    return proof.model_copy(update={"rows": tuple(rows)})


def _begun(
    settings: ProofSettings,
    profile: Profile,
    damage: Damage,
    with_teacher: Bench,
    rows: Sequence[Row],
    plans: Mapping[str, PruningPlan],
    folder: Path,
    command: str,
) -> Proof:
    """The proof before anything is trained: what each row is made of."""
    count = build.count(with_teacher.family, with_teacher.shapes)
    first = ProofRow(name=TEACHER, what=rows[0].what, plan_name="", recipe="", rival=None, ablates=None,
                     plan_sha256=None, edits=(), params=count.params, macs=count.total.macs,
                     predicted_ratio=None)  # fmt: skip
    return Proof(
        created_utc=utc_now(),
        command=command,
        family=with_teacher.family.name,
        teacher_config_sha256=loading.unet_config_sha256(with_teacher.shapes.config),
        weights_sha256=with_teacher.weights_sha256,
        profile_sha256=profile.sha256(),
        damage_sha256=damage.sha256(),
        identity=settings.identity(),
        noise={},
        rows=(first, *(_row(row, plans[row.name], settings, profile, folder) for row in rows[1:])),
        environment=machine.environment("cpu", settings.threads or torch.get_num_threads()),
    )


def _row(row: Row, plan: PruningPlan, settings: ProofSettings, profile: Profile, folder: Path) -> ProofRow:
    recipe = _resolved_recipe(row, settings, folder)
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


def _opened(path: Path, begun: Proof, force: bool) -> Proof:
    """The proof that is found, with rows that are new to it; raises ValueError where it is another experiment's."""
    if not path.exists() or force:
        return begun
    found = Proof.load(path)
    wanted = {**begun.identity, "weights_sha256": begun.weights_sha256, "profile_sha256": begun.profile_sha256,
              "damage_sha256": begun.damage_sha256}  # fmt: skip
    has = {**found.identity, **{name: getattr(found, name) for name in wanted if name not in begun.identity}}
    for name, value in wanted.items():
        if has.get(name) != value:
            raise ValueError(
                f"{path} holds another experiment: its {name} is {has.get(name)}, and not {value}; name another "
                "output, or add --force to throw it away."
            )
    old = {row.name: row for row in found.rows}
    for row in begun.rows:
        if row.name in old and row.plan_sha256 != old[row.name].plan_sha256:
            raise ValueError(f"{path} has the row {row.name} of another plan; name another output, or add --force.")
    order = [row.name for row in ROWS]
    rows = sorted({row.name: row for row in begun.rows} | old, key=order.index)
    both = {row.name: row for row in begun.rows} | old
    return found.model_copy(update={"rows": tuple(both[name] for name in rows)})


# ---------------------------------------------------------------------------------------------- plans


def plans_of(
    rows: Sequence[Row], profile: Profile, damage: Damage, budget: str, folder: Path
) -> dict[str, PruningPlan]:
    """Every row's plan by its name, saved as `folder/plans/ROW.json`."""
    planned = planner.make_plan(profile, budget, damage=damage)
    found = {}
    for row in rows[1:]:
        plan = _plan(row, planned, profile, damage)
        edits = tuple(e for e in plan.edits if not (isinstance(e, ReplaceUnit) and e.with_ in row.without))
        found[row.name] = plan.model_copy(update={"name": row.name, "edits": edits})
        found[row.name].save(_plan_file(row, folder), force=True)
    return found


def _plan(row: Row, planned: PruningPlan, profile: Profile, damage: Damage) -> PruningPlan:
    if row.plan == PLANNED:
        return planned
    kind, _, preset = row.plan.rpartition("=")
    if kind == PLANNED:
        at = planner.price(profile, presets.PRESETS[preset](profile.topology)).ratio
        return planner.make_plan(profile, f"{at:.6f}", confidence=0.5, damage=damage)
    if row.plan == BK_STYLE:
        edits = baselines.bk_style(profile, planner.price(profile, planned.edits).ratio)
    else:
        edits = tuple(presets.PRESETS[row.plan](profile.topology))
    return PruningPlan(family=profile.family, teacher_config_sha256=profile.config_sha256, edits=edits)


def _plan_file(row: Row, folder: Path) -> Path:
    return folder / "plans" / f"{row.name}.json"


# ---------------------------------------------------------------------------------------------- a student


def _resolved_recipe(row: Row, settings: ProofSettings, folder: Path) -> ResolvedRecipe:
    return resolve_recipe(str(_plan_file(row, folder)), settings.family, settings.training(0), row.stages())


def _student(
    row: Row, seed: int, settings: ProofSettings, with_teacher: Bench, folder: Path, tell: Tell
) -> ProofResult:
    """Train one student, going on where an earlier run of it stopped, and judge what it draws."""
    training, home = settings.training(seed), folder / "students" / row.name / f"seed-{seed}"
    recipe = _resolved_recipe(row, settings, folder)
    ahead = [preview_stage(recipe, stage, training) for stage in recipe.stages]

    def watch(status: TrainProgress) -> None:
        tell(f"training, {status.stage}", status.step, status.eta_s)

    done = distill(
        str(_plan_file(row, folder)),
        settings.family,
        home,
        training,
        row.stages(),
        on_progress=watch,
        command="benchmarks.proof.run",
    )
    student = loading.load_unet(load_family(str(home)), str(home))
    return ProofResult(
        seed=seed,
        seconds=sum(stage.seconds for stage in done.stages),
        pictures=sum(stage.steps for stage in done.stages) * settings.batch,
        peak_memory_bytes=max(stage.memory.total for stage in ahead),
        trainable=done.stages[-1].audit.trainable.params,
        student_sha256=done.student_sha256,
        metrics=with_teacher.metrics(student, tell),
    )


@dataclass(frozen=True)
class Bench:
    """The teacher, the judge and the captions: whoever draws, draws beside him and for her."""

    settings: ProofSettings
    folder: Path
    family: Any
    shapes: Any  # the teacher's UNet on the meta device
    teacher: Any
    judging: quality.Judgement

    @classmethod
    def of(cls, settings: ProofSettings, folder: Path) -> Bench:
        family = load_family(settings.family)
        data, others = (_opened_data(settings, split, family) for split in (settings.judged_on, settings.split))
        count = settings.captions or len(data)
        if count > len(data):
            raise ValueError(f"captions {count} are more than the {len(data)} of {settings.data} {settings.judged_on}.")
        picks = np.random.default_rng(0).permutation(len(data))[:count]
        real = [data[int(i)] for i in picks]
        pool = sorted({*datasets.captions_of(data, len(data)), *datasets.captions_of(others, len(others))})
        teacher = loading.load_unet(family, loading.default_weights(family))
        judging = quality.Judgement(networks.Judge.load(), networks.Vgg.load(), real, pool)
        return cls(settings, folder, family, loading.meta_unet(family), teacher, judging)

    @cached_property
    def weights_sha256(self) -> str:
        return loading.weights_sha256(self.teacher)

    @cached_property
    def _made(self) -> Any:
        return pipeline(self.family, self.teacher, Setup())

    def draw(self, unet: Any, first_seed: int, tell: Tell) -> GeneratedImages:
        """One picture of every caption; everyone's i-th is from the same noise."""
        self._made.register_modules(unet=unet)
        captions = [example.caption for example in self.judging.real]
        with machine.quiet_torch(self.settings.threads):
            return generate_images(
                self._made,
                captions,
                first_seed,
                self.settings.drawing_steps,
                self.family.guidance_scale,
                partial(tell, "drawing"),
            )

    def metrics(self, unet: Any, tell: Tell) -> dict[str, Judged]:
        """Every metric of what a UNet draws."""
        drawn = self.draw(unet, 0, tell)
        tell("judging", 0, None)
        return _judged(self.judging.samples(drawn) | self.judging.agreement(drawn, self.drawn_by_teacher(tell)))

    def judged(self, proof: Proof, tell: Tell) -> Proof:
        """A proof with the teacher's own row, and with what he draws from other seeds as the noise floor."""
        drawn, again = self.drawn_by_teacher(tell), self.drawn_by_teacher(tell, len(self.judging.real))
        noise = _judged(self.judging.samples(again) | self.judging.agreement(again, drawn))
        result = ProofResult(
            seed=None,
            seconds=0.0,
            pictures=0,
            peak_memory_bytes=0,
            trainable=0,
            student_sha256=self.weights_sha256,
            metrics=_judged(self.judging.samples(drawn) | self.judging.agreement(drawn, drawn)),
        )
        first = proof.rows[0].model_copy(update={"results": (result,)})
        return proof.model_copy(update={"noise": noise, "rows": (first, *proof.rows[1:])})

    def drawn_by_teacher(self, tell: Tell, first_seed: int = 0) -> GeneratedImages:
        """What the teacher draws, which is drawn once and kept."""
        told = sha256_of([self.weights_sha256, self.settings.identity(), first_seed])[:16]
        path = self.folder / "teacher" / f"{told}.safetensors"
        if path.exists():
            return GeneratedImages(**load_file(path))
        drawn = self.draw(self.teacher, first_seed, lambda _, n, left: tell("the teacher draws", n, left))
        whole = save({name: tensor.contiguous() for name, tensor in vars(drawn).items()})
        write_whole(path, whole, force=True)  # another process may have drawn the same meanwhile
        return drawn


def _opened_data(settings: ProofSettings, split: str, family: Any) -> Any:
    return registry.load("asdm.data.datasets", settings.data).open_data(split, family.size)


def _judged(found: Mapping[str, Samples]) -> dict[str, Judged]:
    """Samples to six figures, which is more than a judge sees."""
    return {
        name: Judged(value=one.value, of=one.of, samples=tuple(float(f"{value:.6g}") for value in one.each))
        for name, one in found.items()
    }


# ---------------------------------------------------------------------------------------------- latency


def time_rows(
    proof: Proof,
    settings: ProofSettings,
    folder: Path,
    backend: str = "eager",
    pairs: int = 40,
    tell: Tell = lambda *_: None,
    command: str = "",
) -> Proof:
    """The proof with every row's latency: each plan's student, with the teacher's weights, in pairs with the teacher.

    Rows of one plan are timed once. The machine should have nothing else to do.
    """
    if pairs < 4:
        raise ValueError(f"pairs {pairs} are too few; choose 4 or more.")
    shown = {row.name: _shape_sha256(row) for row in proof.rows[1:]}
    firsts = {sha256: name for name, sha256 in reversed(shown.items())}
    found = benchmark.bench(
        settings.family,
        [str(folder / "plans" / f"{name}.json") for name in firsts.values()],
        BenchSettings(
            backend=backend,
            threads=settings.threads,
            guidance_scale=1.0,
            min_rounds=math.ceil(pairs / 2),
            time_budget_s=math.inf,
            target=math.inf,
        ),
        tell,
        command,
    )
    timed = {
        sha256: ProofLatency(
            plan_sha256=sha256,
            ratio=one.unet_latency_ratio,
            mean_ratio=statistics.estimate(_ratios(one), np.mean),
            student_s=one.unet_latency_s.samples,
            teacher_s=one.paired_teacher_latency_s.samples,
        )
        for sha256, one in zip(firsts, found.students, strict=True)
    }
    first, *others = proof.rows
    rows = (first, *(row.model_copy(update={"latency": timed[shown[row.name]]}) for row in others))
    timing = ProofTiming(created_utc=found.created_utc, command=command, backend=backend, threads=found.threads,
                         batch=found.batch, environment=found.environment)  # fmt: skip
    return proof.model_copy(update={"rows": rows, "timing": timing})


def _shape_sha256(row: ProofRow) -> str:
    """What decides a student's latency."""
    return sha256_of([edit.model_dump(mode="json", by_alias=True) for edit in row.edits])


def _ratios(one: Any) -> list[float]:
    return [a / b for a, b in zip(one.unet_latency_s.samples, one.paired_teacher_latency_s.samples, strict=True)]
