"""The table of students in docs/results.md, from the JSON of their benchmarks.

python -m benchmarks.students reports/sd15/bench*.json --readme
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from asdm.records.bench import BenchResult, BenchStudent
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


def table(benches: Sequence[tuple[str, BenchResult]]) -> str:
    """Markdown: the teacher, then one row per student and file; × is student / teacher with its 95 % interval."""
    teacher = benches[0][1].teacher
    rows = [f"| teacher | | {_millions(teacher.params)} | {_giga(teacher.macs)} | | 1 | 1 | 1 | |"]
    rows += [_row(student, bench, path) for path, bench in benches for student in bench.students]
    return "\n".join([*HEAD, *rows])


def _row(student: BenchStudent, bench: BenchResult, path: str) -> str:
    predicted = "" if student.predicted_ratio is None else f"{student.predicted_ratio:.3f}"
    pairs = f", {len(student.unet_latency_s.samples)} pairs"
    measured = [
        _ratio(student.unet_latency_ratio) + pairs,
        _ratio(student.guided_latency_ratio),
        _ratio(student.image_latency_ratio),
    ]
    name = NAMES.get(student.name, student.name)
    cells = [name, f"{bench.backend} {bench.dtype}", _millions(student.params), _giga(student.macs), predicted]
    return f"| {' | '.join([*cells, *measured, f'`{path}`'])} |"


def _ratio(ratio: Estimate | None) -> str:
    return "" if ratio is None else f"**{ratio.median:.3f}** [{ratio.low:.3f}, {ratio.high:.3f}]"


def _millions(params: int) -> str:
    return f"{params / 1e6:.1f} M"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.1f}"


def main(
    bench: Annotated[list[Path], typer.Argument(help="bench.json files.")],
    readme: Readme = False,
) -> None:
    """Print the table of students."""
    text = table([(str(path), BenchResult.load(path)) for path in bench])
    if readme:
        put_into_results("table", f"\n{text}\n")
    print(text)


if __name__ == "__main__":
    run(main)
