"""Students as they were measured: a benchmark's, their quality, a search's."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asdm.records.bench import BenchResult, BenchStudent, BenchTeacher, Metric
from asdm.records.measurement import Estimate, mac_unit
from asdm_prof.records import Search
from asdm_prof.renderers import _searches
from asdm_prof.renderers._format import interval, number, plain, ratio, ratio_interval, scaled
from asdm_prof.renderers.console.layout import QUIET, Column, blank_table, print_section


def bench_table(bench: BenchResult, width: int) -> Table:
    """Students as ratios to their teacher, measured in pairs: below 1× is faster."""
    table = blank_table()
    longest = 16 if width < 100 else 40
    table.add_column("student / teacher", no_wrap=True, overflow="ellipsis", max_width=longest)
    columns = [column for column in _student_columns(bench.teacher.macs) if width >= column.from_width]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    rows: list[BenchTeacher | BenchStudent] = [bench.teacher, *bench.students]
    for one in rows:
        table.add_row(Text(plain(one.name)), *(column.cell(one) for column in columns))
    return table


def _unet(one: BenchTeacher | BenchStudent) -> Estimate:
    return one.unet_latency_ratio if isinstance(one, BenchStudent) else TEACHER


def _image(one: BenchTeacher | BenchStudent) -> Estimate | None:
    if isinstance(one, BenchStudent):
        return one.image_latency_ratio
    return TEACHER if one.image_latency_s else None


def _predicted(one: BenchTeacher | BenchStudent) -> str:
    return "" if isinstance(one, BenchTeacher) or one.predicted_ratio is None else ratio(one.predicted_ratio)


def _ratio(value: Estimate | None) -> str:
    return ratio(value.median) if value else ""


def _bounds(value: Estimate | None) -> str:
    return ratio_interval(value) if value and value is not TEACHER else ""


TEACHER = Estimate(median=1, low=1, high=1)


def _student_columns(teacher_macs: int) -> tuple[Column[BenchTeacher | BenchStudent], ...]:
    macs, unit = mac_unit(teacher_macs)
    return (
        Column("UNet", 0, lambda one: _ratio(_unet(one))),
        Column("95 %", 40, lambda one: _bounds(_unet(one)), quiet=True),
        Column("predicted", 50, _predicted),
        Column("image", 56, lambda one: _ratio(_image(one))),
        Column("95 %", 70, lambda one: _bounds(_image(one)), quiet=True),
        Column(unit, 76, lambda one: scaled(one.macs, macs)),
        Column("M params", 80, lambda one: scaled(one.params, 1e6)),
        Column("GB peak", 90, lambda one: scaled(one.peak_memory_bytes, 1e9)),
        Column("s", 100, lambda one: number(one.unet_latency_s.median)),
    )


def quality_table(bench: BenchResult, width: int) -> Table:
    """Quality metrics of every student beside its teacher's and the noise between two runs of the teacher."""
    table = blank_table()
    for title in ("student", "metric"):
        table.add_column(title, no_wrap=True, overflow="ellipsis", max_width=16 if width < 100 else 40)
    for title in ("value", "95 %", "teacher", "noise floor"):
        table.add_column(title, justify="right", no_wrap=True, style=QUIET if title == "95 %" else "")
    for student in bench.students:
        for name, metric in student.quality.items():
            table.add_row(Text(plain(student.name)), Text(plain(name)), *_quality_cells(metric))
    return table


def _quality_cells(metric: Metric) -> list[str]:
    bounds = interval(Estimate(median=metric.value, low=metric.low, high=metric.high))
    optional = ["" if value is None else number(value) for value in (metric.teacher, metric.noise_floor)]
    return [number(metric.value), bounds, *optional]


# ---------------------------------------------------------------------------------------------- search


def print_search(found: Search, console: Console) -> None:
    """Who is on the front, everybody measured, and what it took."""
    console.print(Text(_searches.answer(found), style="bold"))
    print_section(console, "Measured students, those that were trained longest first", search_table(found))
    console.print()
    for line in _searches.lines(found):
        console.print(Text(line))


def search_table(found: Search) -> Table:
    """Every candidate as it was last measured; the first column marks those that no other beats."""
    table = blank_table()
    for title in ("", "no.", "rung", "steps", "predicted", "UNet ×", "", "quality", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found.students:
        mark = one.quality[found.metric]
        table.add_row(
            " ".join(word for word, holds in (("front", one.in_front), ("over", not one.within_budget)) if holds),
            str(one.candidate),
            f"{one.rung + 1} of {len(found.rungs)}",
            str(one.steps),
            ratio(one.predicted.ratio),
            ratio(one.ratio.median),
            ratio_interval(one.ratio),
            number(mark.value),
            f"[{number(mark.low)}, {number(mark.high)}]",
        )
    return table
