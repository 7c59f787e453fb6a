"""Search: many candidates are built, timed and trained a little, the better half longer, and so on (DESIGN §3).

    frontier ──► candidates ──► time, train, judge ──► the better half ──► time … ──► search.json
    k unlike plans              a trial of the study   goes on from its checkpoint

Any number of workers do this together, in one process each; `study.py` is what they share. A candidate is one
run of `asdm distill` that pauses at the end of every rung, so a survivor has the bits of a student that was trained in
one go. Its latency is a ratio to the teacher, measured in pairs in one process while nothing else works on the machine;
ratios of unlike machines never meet, as a worker on another kind of machine is refused.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asdm import distill
from asdm.data import datasets
from asdm.distill import recipes
from asdm.distill.settings import DistillSettings
from asdm.evaluate import benchmark, quality
from asdm.evaluate.settings import BenchSettings
from asdm.measure import machine
from asdm.models import example_inputs, loading
from asdm.models.families import Family, load_family
from asdm.models.loading import weights_sha256
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.plan.edits import PruningPlan
from asdm.records.bench import MEASURES, Metric
from asdm.records.measurement import Estimate
from asdm.utils import io
from asdm.utils.locks import Host
from asdm.utils.progress import Tell
from asdm_prof.analysis.diff import MACHINE
from asdm_prof.planner import frontier
from asdm_prof.planner import plan as planner
from asdm_prof.planner.budgets import parse_budget
from asdm_prof.records import Damage, FrontierPoint, Profile, Rung, Search, SearchedStudent
from asdm_prof.search import study as studies
from asdm_prof.search.halving import Halving, Job
from asdm_prof.search.settings import SearchSettings, WorkerSettings
from asdm_prof.search.study import Claim, Memory

RESULT = "search.json"
POLL_S = 1.0
MOST = 200  # candidates: each is an integer programme that excludes all before it


def search(
    teacher: str,
    settings: SearchSettings,
    output: Path,
    profile: Callable[[], Profile],
    named: Profile | None = None,
    damage: Damage | None = None,
    own: WorkerSettings = WorkerSettings(),
    watching: Callable[[], AbstractContextManager[Tell]] = lambda: nullcontext(lambda *_: None),
    command: str = "asdm-prof search",
) -> Search:
    """Work on a search until all of it is done, and write `search.json`; other workers may do the same meanwhile.

    `profile()` gives the profile that candidates are planned on where the study is new; `named` is the one that must
    have been taken. Raises ValueError for what cannot be, planner.Infeasible for a budget that no plan meets.
    """
    family = load_family(teacher)
    check(family, settings)
    io.make_folder(output)
    worker = Worker(family, teacher, settings, output, own)
    wanted = worker.identity() | ({"profile_sha256": named.sha256()} if named else {})
    wanted |= {"damage_sha256": damage.sha256()} if damage else {}
    name = own.study or f"{io.short_name(teacher)}-{settings.budget}"
    maximise = MEASURES[settings.metric].more_is_better

    def begin() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with worker.host.timing():
            planned_on = named or profile()
        return candidates_of(family, settings, planned_on, damage)

    with studies.opened(own.storage, name, output, wanted, maximise, begin) as memory:
        with watching() as worker.tell:
            worker.run(memory)
        with memory.alone():
            shown = command.replace(own.storage, studies.hidden(own.storage)) if own.storage else command
            result = worker.concluded(memory, shown)
            result.save(output / RESULT, force=True)
    return result


def check(family: Family, settings: SearchSettings) -> None:
    """Raises ValueError naming the first setting that cannot be, and its choices."""
    Halving(settings.candidates, settings.rungs, settings.steps)
    if settings.candidates > MOST:
        raise ValueError(f"candidates {settings.candidates} are too many to plan; choose {MOST} or fewer.")
    if settings.metric not in MEASURES:
        raise ValueError(f"unknown metric {settings.metric!r}; choose from {', '.join(MEASURES)}.")
    for name, least in (("apart", 1), ("prompts", 4), ("draw_steps", 1)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} {getattr(settings, name)} is too few; choose {least} or more.")
    if settings.time_budget_s <= 0:
        raise ValueError(f"time budget {settings.time_budget_s} is none; choose seconds above 0.")
    recipes.load(settings.recipe)
    distill.check(_training(settings, 1, None))
    if not family.text_encoders or not family.vae:
        raise ValueError(f"{family.name} is a UNet alone and draws no pictures to judge; name a whole pipeline.")


def _training(settings: SearchSettings, steps: int, size: int | None, checkpoint_s: float = 600.0) -> DistillSettings:
    """How a candidate trains, as `asdm distill` takes it."""
    same = ("data", "split", "seed", "weights", "device", "dtype", "batch", "learning_rate", "threads")
    given = {name: getattr(settings, name) for name in same}
    return DistillSettings(steps=steps, size=size, checkpoint_s=checkpoint_s, **given)


# ---------------------------------------------------------------------------------------------- candidates


def candidates_of(
    family: Family, settings: SearchSettings, profile: Profile, damage: Damage | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a new study says of its profile, and the plans of its candidates: unlike each other, all within the budget.

    Raises ValueError for a profile or damage of another model, or where there are fewer plans than candidates.
    """
    if loading.unet_config_sha256(loading.meta_unet(family).config) != profile.config_sha256:
        raise ValueError(f"the profile is of {profile.family}, another model than {family.name}; profile that one.")
    found, apart = unlike_plans(profile, settings, damage)
    budget = parse_budget(settings.budget, profile.whole.latency_s.median)
    plans = [_plan(family, profile, settings, budget, damage, n, point) for n, point in enumerate(found)]
    about = {
        "profile_sha256": profile.sha256(),
        "damage_sha256": damage.sha256() if damage else None,
        "budget_ratio": budget,
        "found_apart": apart,
        "damages": [point.damage for point in found],
        **{f"timed_{name}": getattr(profile, name) for name in ("backend", "dtype", "device", "threads", "batch")},
        "size": profile.size,
    }
    return about, plans


def unlike_plans(
    profile: Profile, settings: SearchSettings, damage: Damage | None
) -> tuple[Sequence[FrontierPoint], int]:
    """As many plans of little damage as there are candidates, as unlike as so many can be, up to `apart` choices."""
    found: Sequence[FrontierPoint] = ()
    for apart in range(settings.apart, 0, -1):
        asked = {"latency": settings.budget}
        made = frontier.make_frontier(profile, damage, asked=asked, diverse=settings.candidates, apart=apart)
        found = made.diverse
        if len(found) == settings.candidates:
            return found, apart
    raise ValueError(
        f"there are {len(found)} plans within the budget {settings.budget}, and not {settings.candidates}; choose "
        f"--candidates {len(found)} or fewer, or a higher --budget."
    )


def _plan(
    family: Family,
    profile: Profile,
    settings: SearchSettings,
    budget: float,
    damage: Damage | None,
    number: int,
    point: FrontierPoint,
) -> dict[str, Any]:
    plan = PruningPlan(
        name=f"candidate-{number:02d}",
        family=family.name,
        teacher_config_sha256=profile.config_sha256,
        edits=point.edits,
        budget=settings.budget.strip(),
        budget_ratio=budget,
        damage_from=planner.MEASURED if damage else planner.STRUCTURAL_PRIOR,
        predicted=planner.price(profile, point.edits),
        profile_sha256=profile.sha256(),
        damage_sha256=damage.sha256() if damage else None,
        measured_at=planner.measured_at(profile),
    )
    return plan.model_dump(mode="json", by_alias=True)


# ---------------------------------------------------------------------------------------------- a worker


@dataclass
class Worker:
    """One process of a search."""

    family: Family
    teacher: str
    settings: SearchSettings
    output: Path
    own: WorkerSettings
    tell: Tell = lambda *_: None

    def __post_init__(self) -> None:
        self.host = Host()
        self._judging: quality.Judgement | None = None
        self._judge: Callable[[quality.Drawn], dict[str, Metric]] | None = None

    def identity(self) -> dict[str, Any]:
        """What workers of one study have in common: settings, teacher, pictures, and the kind of machine."""
        settings = self.settings
        teacher = loading.load_unet(self.family, self._weights, settings.device, "fp32", settings.seed)
        facts = machine.environment(settings.device, settings.threads or torch.get_num_threads())
        asked = {key: value for key, value in asdict(settings).items() if key != "weights"}
        return {
            **asked,
            "threads": facts["threads"],
            "teacher_config_sha256": loading.unet_config_sha256(loading.meta_unet(self.family).config),
            "teacher_sha256": weights_sha256(teacher),
            "data_fingerprint": datasets.fingerprint(datasets.open_source(settings.data, settings.split, self._side())),
            **{name: facts[name] for name in MACHINE if name in facts},
        }

    @property
    def _weights(self) -> str:
        return self.settings.weights or loading.default_weights(self.family)

    def _side(self, size: int | None = None) -> int:
        return example_inputs.latent_size(self.family, size) * self.family.vae_factor

    def run(self, memory: Memory) -> None:
        """Take up jobs until every rung has ended."""
        while not memory.halving.finished(memory.attempts()):
            claim = memory.claim(self._has)
            if claim is None:
                self.tell("waiting for the other workers", 0, None)
                time.sleep(POLL_S)
                continue
            self.work(memory, claim)
            self.tidy(memory)

    def work(self, memory: Memory, claim: Claim) -> None:
        """One trial, from its claim to its end, whatever comes between."""
        told = self._teller(memory, claim.job)
        try:
            latency = self.timed(memory, claim, told)
            claim.note(latency=latency)
            self.train(memory, claim, told)
            found = self.judged(memory, claim, told)
            claim.note(quality={name: metric.model_dump() for name, metric in found.items()})
            if self.settings.metric not in found:
                raise ValueError(
                    f"{self.settings.data} has too few captions for {self.settings.metric}; choose another --metric."
                )
        except distill.Diverged as error:
            memory.give_up(claim, "diverged", str(error))
            return
        except BaseException as error:
            with suppress(Exception):  # what went wrong first is what is said
                memory.give_up(claim, "left", str(error) or type(error).__name__)
            raise
        memory.end(claim, latency["ratio"]["median"], found[self.settings.metric].value)

    def tidy(self, memory: Memory) -> None:
        """Drop the checkpoints of candidates that will not go on; their students stay."""
        halving, attempts = memory.halving, memory.attempts()
        for rung in range(1, halving.rungs):
            go_on = halving.field(rung, attempts)
            for candidate in set(halving.field(rung - 1, attempts) or ()) - set(go_on or ()) if go_on else ():
                folder = self._folder(Job(rung, candidate)) / "training" / "checkpoints"
                shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------------ its three parts

    def timed(self, memory: Memory, claim: Claim, told: Tell) -> dict[str, Any]:
        """UNet latency in pairs with the teacher: once for each candidate, as training changes no shape."""
        for trial in memory.done():
            if trial.params["candidate"] == claim.job.candidate:
                return dict(trial.user_attrs["latency"])
        known, path = memory.settings, self._folder(claim.job) / "plan.json"
        plan = PruningPlan.parse(memory.plans[claim.job.candidate], f"candidate {claim.job.candidate}")
        plan.save(path, force=True)
        setup = BenchSettings(
            weights=self._weights,
            **{name: known[f"timed_{name}"] for name in ("backend", "dtype", "device", "threads", "batch")},
            seed=self.settings.seed,
            size=known["size"],
            steps=1,
            guidance_scale=0.0,
            time_budget_s=self.settings.time_budget_s,
        )
        told("waiting for the machine", 0, None)
        with self.host.timing():
            found = benchmark.bench(self.teacher, [str(path)], setup, told)
        (student,) = found.students
        return {
            "ratio": student.unet_latency_ratio.model_dump(),
            "student_s": student.unet_latency_s.samples,
            "teacher_s": student.paired_teacher_latency_s.samples,
            "macs": student.macs,
            "params": student.params,
        }

    def train(self, memory: Memory, claim: Claim, told: Tell) -> None:
        """Train the candidate to the end of its rung, from its last checkpoint."""
        halving, attempts, folder = memory.halving, memory.attempts(), self._folder(claim.job)
        PruningPlan.parse(memory.plans[claim.job.candidate], "the plan").save(folder / "plan.json", force=True)
        after = halving.steps_left(attempts) - halving.steps_of(claim.job)  # of the whole search, after this job
        workers = sum(one.fate == "open" for one in attempts)
        with self.host.working() as breathe:

            def watch(status: distill.TrainProgress) -> None:
                breathe()
                left = None
                if status.eta_s is not None:
                    left = status.eta_s + after / workers * self.settings.batch / status.images_per_s
                told(f"training, {status.stage}", status.step, left)

            distill.distill(
                str(folder / "plan.json"),
                self.teacher,
                folder / "training",
                _training(self.settings, halving.longest, memory.settings["size"], self.own.checkpoint_s),
                recipes.load(self.settings.recipe),
                on_progress=watch,
                command="asdm-prof search",
                until=halving.until(claim.job.rung),
            )

    def judged(self, memory: Memory, claim: Claim, told: Tell) -> dict[str, Metric]:
        """What the judge says of the student's pictures, beside the teacher's of the same seeds."""
        student, size = self.student(memory, claim.job), memory.settings["size"]
        setup = Setup(self._weights, self.settings.device, "fp32", seed=self.settings.seed, size=size)
        with self.host.working() as breathe, torch.inference_mode():

            def drawing(what: str, count: int, eta_s: float | None) -> None:
                breathe()
                told(f"{what} draws", count, None)

            unet = loading.load_unet(load_family(str(student)), str(student), self.settings.device, "fp32")
            made = pipeline(self.family, unet, setup)
            judge = self._beside_the_teacher(made, setup, drawing)
            made.register_modules(unet=unet)
            mine = self._drawn(made, self.settings.seed, size, partial(drawing, "the student"))
            told("judging", 0, None)
            return judge(mine)

    def _beside_the_teacher(
        self, made: Any, setup: Setup, drawing: Tell
    ) -> Callable[[quality.Drawn], dict[str, Metric]]:
        """What judges students, once the teacher has drawn twice: from their seeds, and from others for the noise."""
        if self._judge is None:
            unet = loading.load_unet(self.family, self._weights, setup.device, "fp32", setup.seed)
            made.register_modules(unet=unet)
            tell = partial(drawing, "the teacher")
            seeds = (setup.seed, setup.seed + self.settings.prompts)
            teacher, again = (self._drawn(made, seed, setup.size, tell) for seed in seeds)
            self._judge = self._judgement(setup.size).beside(teacher, again)
        return self._judge

    def _drawn(
        self, made: Any, seed: int, size: int | None, tell: Callable[[int, float | None], None]
    ) -> quality.Drawn:
        settings = self.settings
        guidance = self.family.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        captions = [example.caption for example in self._judgement(size).real]
        return quality.draw(made, captions, seed, settings.draw_steps, guidance, tell, size=self._side(size))

    def _judgement(self, size: int | None) -> quality.Judgement:
        """The judge with the real pictures, the same ones in every worker."""
        if self._judging is None:
            settings = self.settings
            data = datasets.open_source(settings.data, settings.split, self._side(size))
            if isinstance(data, datasets.Stream) or not isinstance(data[0], datasets.Example):
                raise ValueError(f"{settings.data} has no pictures to look up and judge by; give emoji or folder:DIR.")
            asked = BenchSettings(pictures=settings.prompts, judge=settings.judge)
            self._judging = benchmark.judgement(data, f"{settings.data} has {len(data)}", asked)
        return self._judging

    # ------------------------------------------------------------------------------------------ folders and progress

    def _folder(self, job: Job) -> Path:
        return self.output / "candidates" / f"{job.candidate:02d}"

    def _has(self, job: Job) -> bool:
        """Whether what the candidate has learnt so far lies in this worker's folder."""
        return (self._folder(job) / "training" / "run.json").exists()

    def student(self, memory: Memory, job: Job) -> Path:
        """Where a candidate's student lies at the end of a rung."""
        training = self._folder(job) / "training"
        return training if job.rung == memory.halving.rungs - 1 else training / distill.PAUSED

    def _teller(self, memory: Memory, job: Job) -> Tell:
        """Progress of a job."""
        head = f"candidate {job.candidate}, rung {job.rung + 1} of {memory.halving.rungs}"
        return lambda stage, count, eta_s: self.tell(f"{head}: {stage}", count, eta_s)

    # ------------------------------------------------------------------------------------------ the result

    def concluded(self, memory: Memory, command: str) -> Search:
        """What was found, from the study alone: every worker concludes the same."""
        known, settings = memory.settings, self.settings
        students = _front(list(self._students(memory)), settings.metric, memory.maximise)
        halving, attempts = memory.halving, memory.attempts()
        facts = machine.environment(settings.device, int(known["threads"]))
        return Search(
            created_utc=io.utc_now(),
            command=command,
            family=self.family.name,
            weights=loading.weights_name(self.family, self._weights),
            backend=known["timed_backend"],
            dtype=known["timed_dtype"],
            device=known["timed_device"],
            threads=known["timed_threads"],
            seed=settings.seed,
            batch=known["timed_batch"],
            size=known["size"],
            study=memory.study.study_name,
            teacher_config_sha256=known["teacher_config_sha256"],
            weights_sha256=known["teacher_sha256"],
            profile_sha256=known["profile_sha256"],
            damage_sha256=known["damage_sha256"],
            budget=settings.budget,
            budget_ratio=known["budget_ratio"],
            metric=settings.metric,
            maximise=memory.maximise,
            recipe=settings.recipe,
            data=settings.data,
            split=settings.split,
            learning_rate=settings.learning_rate,
            training_batch=settings.batch,
            pictures=settings.prompts,
            rungs=tuple(Rung(candidates=size, steps=halving.until(n)) for n, size in enumerate(halving.sizes)),
            training_steps=sum(halving.steps_of(one.job) for one in attempts if one.fate == "done"),
            trials={fate: sum(one.fate == fate for one in attempts) for fate in ("done", "diverged", "left", "died")},
            students=students,
            failed=_failed(memory, {student.candidate for student in students}),
            environment=facts,
        )

    def _students(self, memory: Memory) -> Iterator[SearchedStudent]:
        """Every candidate's last measurement: who came furthest first, and within a rung the best first."""
        seen: set[int] = set()
        trials = {(trial.params["rung"], trial.params["candidate"]): trial for trial in memory.done()}
        order = {(one.job.rung, one.job.candidate): one for one in memory.attempts() if one.fate == "done"}
        for rung, candidate in sorted(order, key=lambda key: (-key[0], order[key].rank)):
            if candidate not in seen:
                seen.add(candidate)
                yield self._student(memory, Job(rung, candidate), trials[rung, candidate], order[rung, candidate].over)

    def _student(self, memory: Memory, job: Job, trial: Any, over: float) -> SearchedStudent:
        plan = PruningPlan.parse(memory.plans[job.candidate], f"candidate {job.candidate}")
        latency, marks = trial.user_attrs["latency"], trial.user_attrs["quality"]
        assert plan.predicted is not None, "every candidate was planned on a profile"
        return SearchedStudent(
            candidate=job.candidate,
            rung=job.rung,
            steps=memory.halving.until(job.rung),
            edits=plan.edits,
            plan_sha256=plan.sha256(),
            predicted=plan.predicted,
            damage=memory.settings["damages"][job.candidate],
            ratio=Estimate(**latency["ratio"]),
            student_s=tuple(latency["student_s"]),
            teacher_s=tuple(latency["teacher_s"]),
            macs=latency["macs"],
            params=latency["params"],
            quality={name: Metric(**mark) for name, mark in marks.items()},
            within_budget=over <= 0,
            in_front=False,
            host=trial.user_attrs["host"],
            folder=str(self.student(memory, job).relative_to(self.output)),
        )


def _front(students: Sequence[SearchedStudent], metric: str, maximise: bool) -> tuple[SearchedStudent, ...]:
    """The students with those marked that no other beats in both latency and quality."""

    def loss(one: SearchedStudent) -> float:
        return one.quality[metric].value * (-1 if maximise else 1)

    def beaten(one: SearchedStudent) -> bool:
        mine = (one.ratio.median, loss(one))
        others = [(other.ratio.median, loss(other)) for other in students if other is not one]
        return any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in others)

    return tuple(one.model_copy(update={"in_front": not beaten(one)}) for one in students)


def _failed(memory: Memory, measured: set[int]) -> dict[str, str]:
    """Why a candidate has no measurement."""
    found: dict[str, str] = {}
    for trial, one in zip(memory.study.get_trials(deepcopy=False), memory.attempts(), strict=True):
        if one.job.candidate not in measured and one.fate in ("diverged", "died"):
            found[str(one.job.candidate)] = str(trial.user_attrs.get("why", "its worker died each time"))
    return found
