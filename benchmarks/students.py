"""The table of students in docs/results.md, from the JSON of their benchmarks, or one student's ratio over all of them.

python -m benchmarks.students reports/sd15/bench*.json --readme
python -m benchmarks.students reports/sd15/bench*.json --pooled a_sdm --readme
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from asdm.measure.statistics import paired_ratio
from asdm.records.bench import BenchResult, BenchStudent, BenchTeacher
from asdm.records.measurement import Estimate
from benchmarks.script import Readme, put_into_results, run

HEAD = (
    "| student | runtime | parameters | GMAC | predicted × | UNet × | guided step × (batch 2) | whole image × | from |",
    "|---|---|---|---|---|---|---|---|---|",
)
NAMES = {
    "student": "the plan at 0.8",
    "a_sdm": "`a_sdm`, the paper’s assembly",
    "a_sdm_clme": "`a_sdm_clme`, with experts gated by their input",
    "a_sdm_clme_timestep": "`a_sdm_clme_timestep`, gated by the timestep",
}
SETTINGS = ("family", "weights", "backend", "dtype", "device", "threads", "batch", "size")  # alike in what is pooled


def table(benches: Sequence[tuple[str, BenchResult]]) -> str:
    """Markdown: the teacher, then one row per student and file; × is student / teacher with its 95 % interval."""
    teacher = benches[0][1].teacher
    rows = [f"| teacher | | {' | '.join(_size(teacher))} | | 1 | 1 | 1 | |"]
    rows += [_row(student, bench, path) for path, bench in benches for student in bench.students]
    return "\n".join([*HEAD, *rows])


def _row(student: BenchStudent, bench: BenchResult, path: str) -> str:
    predicted = "" if student.predicted_ratio is None else f"{student.predicted_ratio:.3f}"
    unet, guided, image = map(
        _ratio, (student.unet_latency_ratio, student.guided_latency_ratio, student.image_latency_ratio)
    )
    pairs = f"{unet}, {len(student.unet_latency_s.samples)} pairs"
    cells = [NAMES.get(student.name, student.name), f"{bench.backend} {bench.dtype}", *_size(student), predicted]
    return f"| {' | '.join([*cells, pairs, guided, image, f'`{path}`'])} |"


def _ratio(ratio: Estimate | None) -> str:
    return "" if ratio is None else f"**{ratio.median:.3f}** [{ratio.low:.3f}, {ratio.high:.3f}]"


def _size(unet: BenchTeacher | BenchStudent) -> list[str]:
    return [f"{unet.params / 1e6:.1f} M", f"{unet.macs / 1e9:.1f}"]


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
    student_s = [seconds for _, student in measured for seconds in student.unet_latency_s.samples]
    teacher_s = [seconds for _, student in measured for seconds in student.paired_teacher_latency_s.samples]
    return paired_ratio(student_s, teacher_s), len(student_s)


def sentence(ratio: Estimate, pairs: int) -> str:
    """The text between the marks in docs/results.md."""
    return f"{pairs} pairs its UNet is at {_ratio(ratio)} of the teacher"


def main(
    bench: Annotated[list[Path], typer.Argument(help="bench.json files.")],
    student: Annotated[
        str, typer.Option("--pooled", help="A student, such as a_sdm: its latency ratio over all its pairs instead.")
    ] = "",
    readme: Readme = False,
) -> None:
    """Print the table of students, or the latency ratio of one over all its pairs in the benchmarks."""
    benches = [BenchResult.load(path) for path in bench]
    if student:
        mark, inside = "pooled", sentence(*pooled(student, benches))
        text = f"{student}: over all {inside}."
    else:
        text = table(list(zip(map(str, bench), benches, strict=True)))
        mark, inside = "table", f"\n{text}\n"
    if readme:
        put_into_results(mark, inside)
    print(text)


if __name__ == "__main__":
    run(main)
