"""Students against their teacher: latency, quality beside the teacher's own noise, and what they draw."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from asdm.records.bench import MEASURES, BenchResult, BenchSchedule, BenchStudent, BenchTeacher, Drawing
from asdm.records.measurement import Estimate, mac_unit
from asdm.utils import sizes
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import fixed, interval, metric_name, number, plain, plural, ratio, scaled, second_unit
from asdm_prof.renderers.html import charts, tables
from asdm_prof.renderers.html.content import (
    NONE,
    Block,
    Cell,
    Column,
    Figure,
    Paragraph,
    Picture,
    Section,
    Table,
    flat,
    listed,
)
from asdm_prof.renderers.html.tables import Field

TERMINAL_ORDER = (
    "model",
    "UNet",
    "predicted",
    "whole image",
    "computation",
    "parameters",
    "GB peak",
    "measured peak",
    "latency",
)
PICTURE_BYTES = 115_000  # of base64, over all benchmarks: with these a report stays below half a megabyte


def section(report: Report) -> Section | None:
    """Every benchmark of this teacher."""
    room = PICTURE_BYTES / max(sum(bool(bench.drawings) for bench in report.benches), 1)
    blocks = [block for place, bench in enumerate(report.benches, 1) for block in _blocks(bench, place, room)]
    return Section("What did it buy?", blocks) if blocks else None


def _blocks(bench: BenchResult, place: int, room: float) -> Iterator[Block]:
    everyone = _everyone(bench)
    metrics = list(dict.fromkeys(name for one in everyone for name in one.quality))
    yield bench_table(bench, place, metrics)
    if bench.schedules:
        yield schedules_table(bench, place, metrics)
    if bench.out_of_memory:
        left_out = flat(listed([[plain(what)] for what in bench.out_of_memory]))
        yield Paragraph([f"There was too little memory for the {left_out}."], "quiet")
    if metrics:
        yield _quality_table(bench)
        pictures = []
        for nth, metric in enumerate(metrics):
            rows = [(one.name, one.quality.get(metric)) for one in everyone]
            better = MEASURES[metric].direction if metric in MEASURES else ""
            bars = charts.quality_bars(f"quality-{place}-{nth}", metric, rows, better)
            pictures.append(Picture(bars, "A quality metric"))
        yield Figure(pictures, [_quality_caption(bench)])
    drawings = _drawings_table(bench, place, room)
    if drawings.rows:
        yield drawings


def _everyone(bench: BenchResult) -> list[BenchStudent | BenchSchedule]:
    """Who was judged beside the teacher."""
    return [*bench.students, *bench.schedules]


def bench_table(bench: BenchResult, place: int, metrics: Sequence[str]) -> Table:
    """Teacher and students of one benchmark; a column that no student fills is left out."""
    teacher, students = bench.teacher, bench.students
    models: list[BenchTeacher | BenchStudent] = [teacher, *students]
    scale, second = second_unit(min(model.unet_latency_s.median for model in models))
    macs, macs_unit = mac_unit(teacher.macs)
    ratios: dict[str, tuple[str, int | None, int | None, list[Estimate | None]]] = {
        "UNet": ("UNet", 0, 40, [student.unet_latency_ratio for student in students]),
        "guided batch": ("guided", None, None, [student.guided_latency_ratio for student in students]),
        "whole image": ("image", 56, 70, [student.image_latency_ratio for student in students]),
    }
    predicted = [tables.ratio_cell(s.predicted_ratio, s.predicted_low, s.predicted_high) for s in students]
    names = tables.name_cells([f"{teacher.name} (teacher)", *(student.name for student in students)])
    sizes = tables.number_cells([model.params / 1e6 for model in models])
    computations = tables.number_cells([model.macs / macs for model in models])
    times = tables.interval_cells([model.unet_latency_s for model in models], scale)
    peaks = [scaled(model.peak_memory_bytes, 1e9) for model in models]
    fields: list[Field] = [
        (Column("model", numeric=False, terminal_from=0, short="student / teacher"), names),
        (Column("parameters", "M", terminal_from=80, short="M params"), sizes),
        (Column("computation", macs_unit, terminal_from=76, short=macs_unit), computations),
        (Column("latency", second, terminal_from=100, short=second), times),
        (Column("GB peak", terminal_from=90, on_page=False), [Cell(peak) for peak in peaks]),
    ]
    if teacher.measured_peak_bytes is not None:
        measured = [(model.measured_peak_bytes or 0) / 1e9 for model in models]
        fields.append((Column("measured peak", "GB", terminal_from=110), tables.number_cells(measured)))
    if any(student.predicted_ratio for student in students):
        fields.append((Column("predicted", "student / teacher", terminal_from=50), [NONE, *predicted]))
    for name, (short, width, bounds_width, values) in ratios.items():
        if any(values):
            column = Column(name, "student / teacher", terminal_from=width, bounds_from=bounds_width, short=short)
            fields.append((column, [Cell(ratio(1), value=1.0), *tables.ratio_cells(values)]))
    for metric in metrics:
        fields.append((Column(metric_name(metric, 24)), _quality_cells(metric, students)))
    return tables.table(f"bench-{place}", _conditions(bench), fields, terminal_order=TERMINAL_ORDER)


def schedules_table(bench: BenchResult, place: int, metrics: Sequence[str]) -> Table:
    """Schedules across the steps, each beside its UNet's or the teacher's plain image."""
    schedules = bench.schedules
    macs = [tables.ratio_cell(one.macs_ratio) for one in schedules]
    predicted = [tables.ratio_cell(one.predicted_ratio) for one in schedules]
    images = tables.ratio_cells([one.image_latency_ratio for one in schedules])
    fields: list[Field] = [
        (Column("schedule", numeric=False, terminal_from=0), tables.name_cells(one.name for one in schedules)),
        (Column("computation", "schedule / plain", terminal_from=50), macs),
        (Column("predicted", "schedule / plain", terminal_from=60), predicted),
        (Column("whole image", "schedule / teacher", terminal_from=0, bounds_from=40), images),
    ]
    for metric in metrics:
        fields.append((Column(metric_name(metric, 24)), _quality_cells(metric, schedules)[1:]))
    return tables.table(
        f"schedules-{place}", "Schedules, as whole images in pairs with the teacher’s plain one.", fields
    )


def _quality_cells(metric: str, students: Sequence[BenchStudent | BenchSchedule]) -> list[Cell]:
    """A metric down the students, with the teacher's own value and noise on top."""
    results = [student.quality.get(metric) for student in students]
    values = tables.interval_cells([Estimate(median=r.value, low=r.low, high=r.high) if r else None for r in results])
    known = next((result for result in results if result and result.teacher is not None), None)
    if known is None or known.teacher is None:
        return [NONE, *values]
    noise = "" if known.noise_floor is None else f"noise {fixed(known.noise_floor, tables.places([known.noise_floor]))}"
    return [Cell(fixed(known.teacher, tables.places([known.teacher])), noise, known.teacher), *values]


def _quality_table(bench: BenchResult) -> Table:
    """Quality metrics of every student beside its teacher's and the noise between two runs of the teacher."""
    rows = [(one.name, name, result) for one in _everyone(bench) for name, result in one.quality.items()]
    values = [Cell(number(r.value), interval(Estimate(median=r.value, low=r.low, high=r.high))) for *_, r in rows]
    teachers = ["" if r.teacher is None else number(r.teacher) for *_, r in rows]
    floors = ["" if r.noise_floor is None else number(r.noise_floor) for *_, r in rows]
    fields: list[Field] = [
        (Column("student", numeric=False, terminal_from=0), tables.name_cells(name for name, *_ in rows)),
        (Column("metric", numeric=False, terminal_from=0), tables.name_cells(name for _, name, _ in rows)),
        (Column("value", terminal_from=0, bounds_from=0), values),
        (Column("teacher", terminal_from=0), [Cell(text) for text in teachers]),
        (Column("noise floor", terminal_from=0), [Cell(text) for text in floors]),
    ]
    return tables.table("quality", "Quality of the students’ pictures.", fields, medium="terminal")


def _quality_caption(bench: BenchResult) -> str:
    """How many figures of how many lie within the teacher's own noise."""
    judged = [
        abs(result.value - result.teacher) <= result.noise_floor
        for one in _everyone(bench)
        for result in one.quality.values()
        if result.teacher is not None and result.noise_floor is not None
    ]
    if not judged:
        return "Whiskers are 95 % intervals."
    return (
        f"{sum(judged)} of {plural(len(judged), 'figure')} cannot be distinguished from the teacher with other "
        "seeds (shaded); whiskers are 95 % intervals."
    )


def _conditions(bench: BenchResult) -> str:
    """One sentence on what was run, and how an image is made."""
    where = f"{bench.dtype} on {bench.device}, {plural(bench.threads, 'thread')}"
    run = f"{where}, batch {bench.batch}, {sizes.shown(bench.size)} px"
    image = ""
    if bench.pipeline:
        how = "composed from the measured parts" if bench.pipeline.composed else "run from prompt to pixels"
        image = f" An image: {bench.pipeline.steps} steps, guidance {bench.pipeline.guidance_scale:g}, {how}."
    return plain(f"Ratios are student / teacher, measured in pairs: {run}, {bench.weights} weights.{image}", 400)


# ---------------------------------------------------------------------------------------------- drawings


def _drawings_table(bench: BenchResult, place: int, room: float) -> Table:
    """The drawings that the benchmark kept, as far as they fit into `room` bytes of the page."""
    shown: list[Drawing] = []
    size = 0
    for drawing in bench.drawings:
        size += sum(map(len, (drawing.real, drawing.teacher, *drawing.students)))
        if size > room:
            break
        shown.append(drawing)
    students = [plain(student.name, 24) for student in bench.students]
    heads = ["caption", "real picture", f"{plain(bench.teacher.name, 24)} (teacher)", *students]
    left = len(bench.drawings) - len(shown)
    caption = "Each row is one caption and one seed."
    caption += f" {plural(left, 'more caption')} did not fit this page." if left else ""
    columns = [Column(head, numeric=False) for head in heads]
    rows = [_drawing_row(drawing, students) for drawing in shown]
    return Table(f"pictures-{place}", caption, columns, rows, style="pictures")


def _drawing_row(drawing: Drawing, students: Sequence[str]) -> list[Cell]:
    caption = plain(drawing.caption, 80)
    alts = [f"{caption}, the real picture", *(f"{caption}, by {name}" for name in ("the teacher", *students))]
    pngs = (drawing.real, drawing.teacher, *drawing.students)
    images = [Cell(_image(png, alt)) for png, alt in zip(pngs, alts, strict=False)]
    return [Cell(caption, f"seed {drawing.seed}"), *images]


def _image(png: str, alt: str) -> str:
    """A PNG as an element; what is none, or is broken, becomes a word."""
    try:
        data = base64.b64decode(png, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data.startswith(b"\x89PNG\r\n"):
        return "no picture"
    return Markup('<img src="data:image/png;base64,{}" alt="{}" width="96" height="96">').format(png, alt)
