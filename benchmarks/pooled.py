"""One student over several benchmarks of it: the latency ratio of all its pairs together.

    python -m benchmarks.pooled a_sdm reports/sd15/bench*.json

With `--readme` the figure goes between its marks in docs/results.md as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from asdm.measure.statistics import paired_ratio
from asdm.records.bench import BenchResult, BenchStudent
from asdm.records.measurement import Estimate
from asdm.utils import console, io

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
SETTINGS = ("family", "weights", "backend", "dtype", "device", "threads", "batch", "size")


def pooled(name: str, benches: Sequence[BenchResult]) -> tuple[Estimate, int]:
    """The UNet latency ratio of one student, with its interval, over the pairs of every bench; and their number.

    Raises ValueError where no bench has the student, or two were run with other settings.
    """
    found = [(bench, student) for bench in benches for student in bench.students if student.name == name]
    if not found:
        names = sorted({student.name for bench in benches for student in bench.students})
        raise ValueError(f"no student {name!r} in these files; choose from {', '.join(names) or 'none'}.")
    for key in SETTINGS:
        values = sorted({str(getattr(bench, key)) for bench, _ in found})
        if len(values) > 1:
            raise ValueError(f"these files were run with {key} {' and '.join(values)}; pool what was run alike.")
    students = [student for _, student in found]
    ours, theirs = _samples(students, "unet_latency_s"), _samples(students, "paired_teacher_latency_s")
    return paired_ratio(ours, theirs), len(ours)


def _samples(students: Sequence[BenchStudent], which: str) -> list[float]:
    return [seconds for student in students for seconds in getattr(student, which).samples]


def sentence(ratio: Estimate, pairs: int) -> str:
    """What stands between the marks in docs/results.md."""
    return f"{pairs} pairs its UNet is at **{ratio.median:.3f}** [{ratio.low:.3f}, {ratio.high:.3f}] of the teacher"


def into_results(text: str, said: str) -> str:
    """The page with the sentence between its two marks."""
    return io.between_marks(text, "pooled", said)


def main(
    student: Annotated[str, typer.Argument(help="Its name in the files, such as a_sdm.")],
    bench: Annotated[list[Path], typer.Argument(help="bench.json files; those without the student do not count.")],
    readme: Annotated[bool, typer.Option("--readme", help="Put the figure into docs/results.md.")] = False,
) -> None:
    """One student over several benchmarks of it: the latency ratio of all its pairs together."""
    said = sentence(*pooled(student, [BenchResult.load(path) for path in bench]))
    if readme:
        io.write_whole(RESULTS, into_results(RESULTS.read_text(encoding="utf-8"), said), force=True)
        console.say(f"Wrote {RESULTS}")
    print(f"{student}: over all {said}.")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    console.run(app)
