"""The latency ratio of one student over all its pairs in several benchmarks.

    python -m benchmarks.pooled a_sdm reports/sd15/bench*.json

`--readme` also puts the figure between its marks in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from asdm.measure.statistics import paired_ratio
from asdm.records.bench import BenchResult, BenchStudent
from asdm.records.measurement import Estimate
from benchmarks.script import Readme, put_into_results, run

SETTINGS = ("family", "weights", "backend", "dtype", "device", "threads", "batch", "size")


def pooled(name: str, benches: Sequence[BenchResult]) -> tuple[Estimate, int]:
    """The UNet latency ratio of one student over the pairs of all benchmarks, and how many pairs there are.

    Raises ValueError where no benchmark has the student, or two ran with different settings.
    """
    measured = [(bench, student) for bench in benches for student in bench.students if student.name == name]
    if not measured:
        names = sorted({student.name for bench in benches for student in bench.students})
        raise ValueError(f"no student {name!r} in these files; choose from {', '.join(names) or 'none'}.")
    for key in SETTINGS:
        values = sorted({str(getattr(bench, key)) for bench, _ in measured})
        if len(values) > 1:
            raise ValueError(f"{key} must be the same in all files, got {' and '.join(values)}.")
    students = [student for _, student in measured]
    ours, theirs = _samples(students, "unet_latency_s"), _samples(students, "paired_teacher_latency_s")
    return paired_ratio(ours, theirs), len(ours)


def _samples(students: Sequence[BenchStudent], which: str) -> list[float]:
    return [seconds for student in students for seconds in getattr(student, which).samples]


def sentence(ratio: Estimate, pairs: int) -> str:
    """The text between the marks in docs/results.md."""
    return f"{pairs} pairs its UNet is at **{ratio.median:.3f}** [{ratio.low:.3f}, {ratio.high:.3f}] of the teacher"


def main(
    student: Annotated[str, typer.Argument(help="Name in the files, such as a_sdm.")],
    bench: Annotated[list[Path], typer.Argument(help="bench.json files; those without the student are ignored.")],
    readme: Readme = False,
) -> None:
    """Print the latency ratio of one student over all its pairs in several benchmarks."""
    text = sentence(*pooled(student, [BenchResult.load(path) for path in bench]))
    if readme:
        put_into_results("pooled", text)
    print(f"{student}: over all {text}.")


if __name__ == "__main__":
    run(main)
