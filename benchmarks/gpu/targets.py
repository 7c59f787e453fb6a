"""The figures that were aimed at, each beside its target: a function of the result files alone."""

from collections.abc import Iterator
from dataclasses import dataclass

from asdm.measure.statistics import paired_ratio
from asdm.records.bench import BenchResult, BenchStudent
from asdm.records.measurement import Estimate
from asdm_prof.records import Comparison, Profile, Validation
from benchmarks.gpu.context import EAGER, GRAPH
from benchmarks.gpu.measuring import BATCHES, BUDGET, COMPILED, part_name
from benchmarks.gpu.records import Files, MemoryCheck, PrecisionRun, SuiteResult, TrainingCost

RESIDUAL, HOOKS = 0.01, 0.01
MEAN_ERROR, P95 = 0.02, 0.05
FASTER, MEMORY = 1.15, 0.50
PAPER = "the paper: 0.78"


@dataclass(frozen=True)
class Target:
    """A figure as a reader sees it; `reached` is None where nothing was aimed at."""

    figure: str
    target: str
    measured: str
    reached: bool | None
    stage: str


def targets(files: Files) -> list[Target]:
    """All figures that there are results for."""
    makers = (_profiles, _ranks, _predictions, _students, _memory, _training, _precisions, _tests)
    return [target for make in makers for target in make(files)]


def rows(files: Files) -> list[dict[str, str]]:
    """The figures as rows of a table."""
    words = {True: "yes", False: "no", None: ""}
    return [
        {"figure": one.figure, "target": one.target, "measured": one.measured, "reached": words[one.reached],
         "from": files.file_of[one.stage]}
        for one in targets(files)
    ]  # fmt: skip


def between(value: Estimate, percent: bool = False) -> str:
    """A median with its interval."""
    form = "{:+.2%}" if percent else "{:.3f}"
    median, low, high = (form.format(number) for number in (value.median, value.low, value.high))
    return f"{median} [{low}, {high}]"


# ---------------------------------------------------------------------------------------------- profiles


def _profiles(files: Files) -> Iterator[Target]:
    """Whether the parts of a call in a CUDA graph add up, and what their events cost."""
    for stage, title in (("profile", ""), ("sdxl", "SDXL, ")):
        for name, profile in files.results(stage, Profile).items():
            busy = profile.whole.gpu_busy
            if busy and profile.backend == EAGER:
                yield Target(f"GPU busy, {title}{name}", "", between(busy), None, stage)
            if profile.backend != GRAPH:
                continue
            residual, hooks = profile.part("other").share, _hooks(profile)
            yield Target(f"residual, {title}{name}", f"≤ {RESIDUAL:.0%}", between(residual, True),
                         abs(residual.median) <= RESIDUAL, stage)  # fmt: skip
            yield Target(f"hooks, {title}{name}", f"≤ {HOOKS:.0%}", between(hooks, True), hooks.median <= HOOKS, stage)


def _hooks(profile: Profile) -> Estimate:
    """What a call with events takes more than a bare one beside it."""
    hooked, bare = profile.whole.hooked_latency_s.samples, profile.whole.latency_s.samples
    ratio = paired_ratio(hooked[: len(bare)], bare[: len(hooked)])
    return Estimate(median=ratio.median - 1, low=ratio.low - 1, high=ratio.high - 1)


def _ranks(files: Files) -> Iterator[Target]:
    """How alike eager and graph rank the units at each batch."""
    for comparison in files.results("profile", Comparison).values():
        names = [profile.source for profile in comparison.profiles]
        for batch in BATCHES:
            pair = part_name(EAGER, batch), part_name(GRAPH, batch)
            if all(name in names for name in pair):
                value = comparison.spearman[names.index(pair[0])][names.index(pair[1])]
                yield Target(f"Spearman of unit ranks, {EAGER} and {GRAPH}, batch {batch}", "", f"{value:.3f}", None,
                             "profile")  # fmt: skip


def _predictions(files: Files) -> Iterator[Target]:
    for name, validation in files.results("validate", Validation).items():
        plans, graph = len(validation.plans), validation.backend == GRAPH
        for title, limit, value in (("mean error", MEAN_ERROR, validation.mape), ("P95", P95, validation.p95)):
            yield Target(f"{title} of {plans} predictions, {name}", f"≤ {limit:.0%}" if graph else "", f"{value:.2%}",
                         value <= limit if graph else None, "validate")  # fmt: skip


# ---------------------------------------------------------------------------------------------- students


def _students(files: Files) -> Iterator[Target]:
    """Latency ratios in every execution, at batch 1 and in a guided step (batch 2)."""
    for backend, result in files.results("bench", BenchResult).items():
        for student in result.students:
            for batch, ratio in ((1, student.unet_latency_ratio), (2, student.guided_latency_ratio)):
                if ratio:
                    yield _student(student, backend, batch, ratio)
    for mode in COMPILED:
        for name, result in files.results("compiled", BenchResult).items():
            for student in result.students if name == mode else ():
                target = PAPER if student.name == "a_sdm" else ""
                figure = f"{student.name}, {part_name(mode, result.batch)}"
                yield Target(figure, target, between(student.unet_latency_ratio), None, "compiled")


def _student(student: BenchStudent, backend: str, batch: int, ratio: Estimate) -> Target:
    """A student's ratio; a plan has its budget to keep for one image at a time in a CUDA graph."""
    planned, target, reached = student.predicted_ratio is not None and batch == 1, "", None
    if student.name == "a_sdm":
        target = PAPER
    elif planned and backend == GRAPH:
        target, reached = f"≤ {BUDGET}, predicted {student.predicted_ratio:.3f}", ratio.median <= float(BUDGET)
    return Target(f"{student.name}, {part_name(backend, batch)}", target, between(ratio), reached, "bench")


# ---------------------------------------------------------------------------------------------- memory and training


def _memory(files: Files) -> Iterator[Target]:
    for check in files.results("memory", MemoryCheck).values():
        for case in check.cases:
            measured = f"{case.counted_bytes / 2**30:.2f} of {case.measured_bytes / 2**30:.2f} GiB ({case.ratio:.0%})"
            yield Target(f"memory counted of measured, batch {case.batch}", "", measured, None, "memory")


def _training(files: Files) -> Iterator[Target]:
    """Our step against the plain loop's."""
    from benchmarks.distillation import DistillationCost

    for training in files.results("training", TrainingCost).values():
        cost = training.cost
        assert isinstance(cost, DistillationCost)
        gpu = cost.device != "cpu"
        for loop in cost.loops:
            what = f"{loop.name}, {cost.dtype}, {cost.size} px, batch {cost.batch}"
            ratio, share = loop.steps_per_second_ratio, loop.peak_bytes / loop.plain_peak_bytes
            per_s = [cost.batch / seconds.median for seconds in (loop.step_s, loop.plain_step_s)]
            measured = (
                f"{between(ratio)} ({per_s[0]:.1f} against {per_s[1]:.1f} img/s; MACs allow {training.macs_ratio:.2f})"
            )
            yield Target(f"img/s against the plain loop, {what}", f"≥ {FASTER}", measured,
                         ratio.median >= FASTER if gpu else None, "training")  # fmt: skip
            measured = f"{share:.0%} ({loop.peak_bytes / 2**30:.1f} of {loop.plain_peak_bytes / 2**30:.1f} GiB)"
            yield Target(f"memory against the plain loop, {what}", f"≤ {MEMORY:.0%}", measured,
                         share <= MEMORY if gpu else None, "training")  # fmt: skip
            estimate = f"{training.estimated_bytes / 2**30:.1f} of {loop.peak_bytes / 2**30:.1f} GiB"
            yield Target(f"training memory estimated of measured, {what}", "", estimate, None, "training")


def _precisions(files: Files) -> Iterator[Target]:
    for name, run in files.results("precisions", PrecisionRun).items():
        measured = f"loss {run.first_loss:.3g} to {run.last_loss:.3g}, {run.images_per_s:.0f} img/s"
        yield Target(f"mini, {run.steps} steps in {name}", "", measured, None, "precisions")
        measured = f"{'deterministic; ' * run.deterministic}killed at {run.killed_at}, "
        measured += f"resumed from {run.resumed_from}: "
        measured += "same bits" if run.same_bits else f"weights differ by at most {run.largest_difference:.1e}"
        yield Target(f"resume in {name}", "same bits", measured, run.same_bits, "precisions")


def _tests(files: Files) -> Iterator[Target]:
    for suite in files.results("tests", SuiteResult).values():
        measured = f"{suite.passed} passed, {suite.failed} failed, {suite.skipped} skipped"
        yield Target("tests on the GPU", "none fails", measured, suite.failed == 0 if suite.passed else None, "tests")
