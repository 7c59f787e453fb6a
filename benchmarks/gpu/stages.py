"""The stages in order of value: what each is called, its file, and how long it may take on a fast GPU."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageSpec:
    """A stage; `parts` names the function that lists its parts, `limit_s` ends its process."""

    name: str
    title: str
    file: str
    limit_s: float
    parts: str


def _stage(name: str, title: str, file: str, limit_s: float, module: str = "measuring") -> StageSpec:
    return StageSpec(name, title, f"gpu-{file}.json", limit_s, f"benchmarks.gpu.{module}:{name}")


STAGES = (
    _stage("mini", "the mini: profiles, students, training steps", "checks", 75),
    _stage("profile", "SD 1.5 profiled in eager and as a CUDA graph", "profiles", 180),
    _stage("validate", "predictions against measured plans", "validation", 75),
    _stage("bench", "students in pairs with SD 1.5", "bench", 90),
    _stage("memory", "counted against measured memory", "memory", 30),
    _stage("sdxl", "SDXL profiled", "sdxl", 75),
    _stage("training", "a training step against the plain loop", "training", 120, "training"),
    _stage("precisions", "the mini trained in each precision, killed and resumed", "checks", 150, "training"),
    _stage("tests", "the tests that need a GPU", "checks", 90, "suite"),
    _stage("compiled", "students under torch.compile", "compiled", 240),
)
PATIENCE = 8.0  # times as long on a CPU
FILE_OF = {stage.name: stage.file for stage in STAGES}


def chosen(names: str) -> list[StageSpec]:
    """The stages named in a list with commas, in their own order; all of them for an empty one.

    Raises ValueError for an unknown name.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in FILE_OF]:
        raise ValueError(f"unknown stage {unknown[0]!r}; choose from {', '.join(FILE_OF)}.")
    return [stage for stage in STAGES if not wanted or stage.name in wanted]


def limits(texts: Sequence[str], device: str) -> dict[str, float]:
    """Seconds for each stage; `sdxl=60` changes one. Raises ValueError for a text that is not of that form."""
    seconds = {stage.name: stage.limit_s * (PATIENCE if device == "cpu" else 1) for stage in STAGES}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in FILE_OF:
            raise ValueError(f"unknown stage {name!r}; choose from {', '.join(FILE_OF)}.")
        try:
            seconds[name] = float(value)
        except ValueError:
            seconds[name] = 0.0
        if not 0 < seconds[name] < float("inf"):
            raise ValueError(f"the limit of {name} must be a number of seconds above 0, got {value!r}.")
    return seconds
