"""What `benchmarks.gpu` writes: at most eight files, each with the stages that belong together and their parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from asdm.utils.record import Frozen, Record, later
from asdm_prof.records import kinds

R = TypeVar("R", bound=Record)
State = Literal["unfinished", "done", "refused", "failed", "timed out", "interrupted"]
WORST_FIRST: tuple[State, ...] = ("interrupted", "timed out", "failed", "unfinished", "done", "refused")


# ---------------------------------------------------------------------------------------------- own measurements


class MemoryCase(Frozen):
    """One UNet call: the peak that was counted on the meta device, and the one that torch's allocator saw."""

    batch: int
    counted_bytes: int
    measured_bytes: int

    @property
    def ratio(self) -> float:
        return self.counted_bytes / self.measured_bytes


class MemoryCheck(Record, schema="asdm.gpu-memory/1"):
    """`asdm.gpu-memory/1`: counted against measured peak memory of eager UNet calls, weights included."""

    family: str
    dtype: str
    size: int
    cases: tuple[MemoryCase, ...]


class PrecisionRun(Record, schema="asdm.gpu-precision/1"):
    """`asdm.gpu-precision/1`: one distillation of the mini, and the same killed in its middle and resumed."""

    dtype: str
    deterministic: bool
    steps: int
    batch: int
    seconds: float  # of the unbroken run's steps
    images_per_s: float
    first_loss: float  # means over the first and the last tenth of the last stage's steps
    last_loss: float
    killed_at: int  # the last step in the log when the process was killed
    resumed_from: int  # the checkpoint that it resumed from
    same_bits: bool  # whether both runs end with the same student
    largest_difference: float  # between weights of the two students


class SuiteResult(Record, schema="asdm.gpu-tests/1"):
    """`asdm.gpu-tests/1`: how the tests that need a GPU ended."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: dict[str, str]  # name of a test → the first line of what it said


class TrainingCost(Record, schema="asdm.gpu-training/1"):
    """`asdm.gpu-training/1`: a stage-2 training step against the plain loop, with what counting allows."""

    cost: SerializeAsAny[Annotated[Record, BeforeValidator(lambda value: result_of(value, "cost"))]]
    macs_ratio: float  # MACs of a plain step / of ours: the speed-up if every MAC took the same time
    estimated_bytes: int  # what `asdm distill --dry-run` says of our step, without encoding
    smaller_because: str = later("")  # why the batch is smaller than was asked for


OWN: tuple[type[Record], ...] = (MemoryCheck, PrecisionRun, SuiteResult, TrainingCost)


def result_of(value: Any, source: str = "the result") -> Record:
    """A result as the record that its schema names; raises ValueError for an unknown schema."""
    if isinstance(value, Record):
        return value
    schema = str(value.get("schema")) if isinstance(value, Mapping) else "None"
    if schema.startswith("asdm.distillation-cost/"):
        from benchmarks.distillation import DistillationCost  # brings torch along

        return DistillationCost.parse(value, source)
    for model in (*kinds().values(), *OWN):
        if schema.partition("/")[0] == model.SCHEMA.partition("/")[0]:
            return model.parse(value, source)
    raise ValueError(f"{source} has the unknown schema {schema}")


Result = SerializeAsAny[Annotated[Record, BeforeValidator(result_of)]]


# ---------------------------------------------------------------------------------------------- files


class PartRun(Frozen):
    """One measurement of a stage: how it ended, in how long, and its record where there is one."""

    state: State = "unfinished"
    message: str = later("")
    seconds: float = 0.0
    result: Result | None = None


class StageRun(Frozen):
    """A stage: its parts in order, and the machine before and after them."""

    started_utc: str
    seconds: float
    smoke: bool
    environment: dict[str, str]
    changed: dict[str, str] = later({})  # of the environment, after the last part: clocks, temperature
    parts: dict[str, PartRun] = later({})
    complete: bool = False  # whether every part has had its turn
    message: str = later("")  # why some have not

    @property
    def settled(self) -> tuple[str, ...]:
        """The parts that need no other try."""
        return tuple(name for name, part in self.parts.items() if part.state in ("done", "refused"))

    @property
    def state(self) -> str:
        """How the stage ended, by its worst part."""
        states = [part.state for part in self.parts.values()]
        worst = next((state for state in WORST_FIRST if state in states), "done")
        if self.complete or worst in WORST_FIRST[:4]:
            return worst
        return "failed" if self.message else "unfinished"


class StageFile(Record, schema="asdm.gpu/1"):
    """`asdm.gpu/1`: the stages of one file, rewritten whole whenever a part has ended."""

    created_utc: str
    command: str
    device: str
    stages: dict[str, StageRun]

    @property
    def card(self) -> str:
        """The GPU, or the CPU where the stages ran on one."""
        environments = [stage.environment for stage in self.stages.values()]
        return next((facts.get("gpu", facts.get("cpu", "?")) for facts in environments if facts), "?")


class Files:
    """The files of one run in a folder, by stage."""

    def __init__(self, folder: Path, file_of: Mapping[str, str]) -> None:
        self.folder, self.file_of = folder, file_of

    def path(self, stage: str) -> Path:
        return self.folder / self.file_of[stage]

    def load(self, stage: str) -> StageFile | None:
        """The file that a stage is in, if there is one yet."""
        return StageFile.load(self.path(stage)) if self.path(stage).exists() else None

    def stage(self, stage: str) -> StageRun | None:
        file = self.load(stage)
        return file.stages.get(stage) if file else None

    def results(self, stage: str, kind: type[R]) -> dict[str, R]:
        """The records of one kind that a stage has, by part."""
        run = self.stage(stage)
        parts = run.parts.items() if run else ()
        return {name: part.result for name, part in parts if isinstance(part.result, kind)}

    def result(self, stage: str, part: str, kind: type[R]) -> R:
        """One record; raises ValueError where its part has not succeeded."""
        results = self.results(stage, kind)
        if part not in results:
            raise ValueError(f"this needs “{part}” of the stage {stage}, which has no result yet.")
        return results[part]
