"""What was found beside the profile: validation, frontier, damage, quality, pictures, training, other runtimes.

Each function returns what the template shows of it, or None (an empty list) where it was not measured.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from asdm.plan import AnyEdit, resolve
from asdm.results import BenchResult, Drawing, Estimate, Metric
from asdm_prof.records import ComparedPlan, Comparison, PartRecord, Profile, ValidatedPlan
from asdm_prof.renderers._drawn import FrontierFile, FrontierPoint, own_point
from asdm_prof.renderers._format import number, percent, plain, plural, ratio
from asdm_prof.renderers._html import charts
from asdm_prof.renderers._html.svg import LEFT, STEP, Predicted, prediction_scatter
from asdm_prof.renderers._html.tables import NONE, Cell, Column, Table, damage_cell
from asdm_prof.renderers._html.unet_svg import small_u
from asdm_prof.renderers._html.view import BOUNDS, View, amount_text, damage_word, edits_share

PICTURE_BYTES = 150_000  # of base64, over all benchmarks: with these a report stays below half a megabyte
PLANS_SHOWN = 6

# ---------------------------------------------------------------------------------------------- roofline


def roofline(view: View) -> dict[str, Any] | None:
    """Every part under the machine's roofline."""
    profile = view.profile
    parts = charts.on_the_roofline(profile)
    if profile.peaks is None or not parts:
        return None
    return {
        "picture": charts.roofline(profile, profile.peaks, view.index, view.told),
        "caption": _roofline_caption(profile, parts),
    }


def _roofline_caption(profile: Profile, parts: Sequence[PartRecord]) -> str:
    """Which parts are bound by what, and the worst use of the machine."""
    bound: dict[str, float] = {}
    for part in profile.parts:
        if part.roofline and part.share.median >= 0.0005:
            bound[part.roofline.bound] = bound.get(part.roofline.bound, 0.0) + part.share.median
    said = ", ".join(
        f"{percent(share)} of the time by {BOUNDS[name]}"
        for name, share in sorted(bound.items(), key=lambda row: -row[1])
    )
    units = [part for part in parts if part.kind != "glue"] or list(parts)
    first = max(units, key=lambda part: part.latency_s.median)
    reached = first.roofline.attained if first.roofline else 0.0
    return plain(
        f"The nearer to the line, the better the machine is used. Bound: {said}. {first.fqn}, the "
        f"costliest unit, attains {percent(reached)} of its roof.",
        400,
    )


# ---------------------------------------------------------------------------------------------- validation


def validation(view: View) -> dict[str, Any] | None:
    """Predicted against measured on random plans."""
    found = view.report.validation
    if found is None:
        return None
    rows = [_validated(plan) for plan in found.plans]
    learnt = "used" if found.correction.helps else "not used"
    return {
        "picture": prediction_scatter("validation", rows),
        "caption": plain(
            f"{plural(len(rows), 'random legal plan')}, built and measured in pairs: {percent(found.mape)} of the "
            f"teacher’s latency away on average, 95 % of them within {percent(found.p95)}, bias "
            f"{100 * found.bias:+.1f} %, rank correlation {found.rank_correlation:.3f}. The predictions’ 95 % "
            f"intervals held for {percent(found.coverage)}; the correction per kind of edit is {learnt}.",
            500,
        ),
    }


def _validated(plan: ValidatedPlan) -> Predicted:
    measured = Estimate(median=plan.measured_ratio, low=plan.measured_low, high=plan.measured_high)
    return Predicted("", plan.predicted_ratio, (plan.low, plan.high), measured)


# ---------------------------------------------------------------------------------------------- frontier


def frontier(view: View) -> dict[str, Any] | None:
    """The least damage at each latency, with the report's own plan, and some of its plans as pictures."""
    found = view.report.frontier
    if found is None or not found.points:
        return None
    teacher_s = view.profile.whole.latency_s.median
    spots = [charts.Spot(_edits_name(p.edits), p.latency_s / teacher_s, p.damage) for p in found.points]
    told = own_point(view.plan, found, teacher_s)
    own = charts.Spot("this plan", *told) if told else None
    return {
        "picture": charts.frontier(spots, own),
        "caption": _frontier_caption(spots, own, teacher_s),
        "rows": list(_rows_of_plans(view, found)),
    }


def _frontier_caption(spots: Sequence[charts.Spot], own: charts.Spot | None, teacher_s: float) -> str:
    ordered = sorted(spots, key=lambda spot: spot.ratio)
    said = f"{plural(len(spots), 'plan')} that no other beats in both, from {ratio(ordered[0].ratio)}."
    price = _shadow_price(ordered, own.ratio, teacher_s) if own else None
    if price is not None:
        said += f" Around this plan, one more millisecond saved costs {number(price)} of damage."
    return plain(said, 400)


def _shadow_price(ordered: Sequence[charts.Spot], at: float, teacher_s: float) -> float | None:
    """Damage per millisecond between the frontier's plans on both sides of a ratio."""
    below = [spot for spot in ordered if spot.ratio < at - 1e-9]
    above = [spot for spot in ordered if spot.ratio >= at - 1e-9]
    if not below or not above or above[0].ratio == below[-1].ratio:
        return None
    rise = below[-1].damage.value - above[0].damage.value
    return rise / (1e3 * teacher_s * (above[0].ratio - below[-1].ratio))


def _rows_of_plans(view: View, found: FrontierFile) -> Iterator[dict[str, Any]]:
    """A few plans from fast to slow; where a budget was asked for, the best within it, and unlike ones."""
    order = sorted(found.points, key=lambda point: point.latency_s)
    step = max(1.0, (len(order) - 1) / (PLANS_SHOWN - 1))
    along = [order[i] for i in dict.fromkeys(min(round(n * step), len(order) - 1) for n in range(PLANS_SHOWN))]
    for name, points in (
        ("Along the frontier", along),
        ("The best within the budget", found.best[:PLANS_SHOWN]),
        ("Good ones that are unlike each other", found.diverse[:PLANS_SHOWN]),
    ):
        shown = list(_small_plans(view, points, f"plans-{name.partition(' ')[0].lower()}"))
        if shown:
            yield {"name": name, "plans": shown}


def _small_plans(view: View, points: Sequence[FrontierPoint], name: str) -> Iterator[dict[str, Any]]:
    """Each plan as a small U; those that do not fit the profile's UNet are left out."""
    topology, teacher_s = view.profile.topology, view.profile.whole.latency_s.median
    for i, point in enumerate(points):
        try:
            kept = resolve(topology, point.edits)
        except ValueError:
            continue
        yield {
            "picture": small_u(f"{name}-{i}", _edits_name(point.edits), topology, kept.gone, kept.replaced),
            "ratio": ratio(point.latency_s / teacher_s),
            "damage": f"damage {amount_text(point.damage)}",
            "edits": plural(len(point.edits), "edit"),
        }


def _edits_name(edits: Sequence[AnyEdit]) -> str:
    return plain("; ".join(map(str, edits)) or "the teacher itself", 300)


# ---------------------------------------------------------------------------------------------- damage


def damage(view: View) -> dict[str, Any] | None:
    """Measured damage of every edit: the units' own in the order of their redundancy, and all as a table."""
    found = view.report.damage
    if found is None or not found.edits:
        return None
    rows = [(row.fqn, row.label, view.damages[row.fqn][1] if row.fqn in view.damages else None) for row in view.ranked]
    drawable = any(amount and amount.value > 0 for _, _, amount in rows)
    return {
        "picture": charts.damage_dots(rows, LEFT, STEP) if drawable else None,
        "caption": _damage_caption(view),
        "table": _damage_table(view),
    }


def _damage_caption(view: View) -> str:
    found = view.report.damage
    assert found is not None
    said = ""
    if view.damages:
        least = min(view.damages, key=lambda fqn: view.damages[fqn][1].value)
        edit, amount = view.damages[least]
        said = f"Least is done by {least} {damage_word(edit)}: {amount_text(amount)}."
    sums = found.additivity
    if sums and sums.spearman is not None:
        fit = "" if sums.r2 is None else f", R² {sums.r2:.2f}"
        said += f" On random joint plans, summed damages rank like measured ones: Spearman {sums.spearman:.3f}{fit}."
    return plain(said.strip(), 400)


def _damage_table(view: View) -> Table:
    found = view.report.damage
    assert found is not None
    columns = [
        Column("edit", numeric=False),
        Column("damage"),
        Column("time it is about", "%"),
        Column("parameters it is about", "%"),
    ]
    rows = []
    for row in sorted(found.edits, key=lambda row: row.damage.value):
        share, params = edits_share(view, row.edit)
        rows.append(
            [
                Cell(plain(str(row.edit), 80)),
                damage_cell(row.damage),
                Cell(f"{100 * share:.1f}", value=100 * share),
                Cell(f"{100 * params:.2f}", value=100 * params),
            ]
        )
    caption = f"{plural(len(rows), 'edit')}, least damage first; in brackets the 95 % interval."
    return Table("damage", caption, columns, rows)


# ---------------------------------------------------------------------------------------------- quality and pictures

BETTER = {"clip_score": "more is better", "recall_at_1": "more is better"}


def quality(bench: BenchResult, number_: int) -> list[Markup]:
    """One picture for each metric of a benchmark."""
    names = list(dict.fromkeys(name for student in bench.students for name in student.quality))
    return [_quality_of(bench, name, f"quality-{number_}-{place}") for place, name in enumerate(names)]


def _quality_of(bench: BenchResult, metric: str, name: str) -> Markup:
    rows: list[tuple[str, Metric | None]] = [(student.name, student.quality.get(metric)) for student in bench.students]
    return charts.quality_bars(name, metric, rows, BETTER.get(metric, "less is better"))


def quality_caption(bench: BenchResult) -> str:
    """How many figures of how many lie within the teacher's own noise."""
    judged = [
        abs(one.value - one.teacher) <= one.noise_floor
        for student in bench.students
        for one in student.quality.values()
        if one.teacher is not None and one.noise_floor is not None
    ]
    return (
        f"{sum(judged)} of {plural(len(judged), 'figure')} cannot be told from the teacher drawing with other seeds "
        "(shaded); whiskers are 95 % intervals."
    )


def pictures(bench: BenchResult, room: float = PICTURE_BYTES) -> dict[str, Any] | None:
    """The drawings that the benchmark kept, as far as they fit into `room` bytes of the page."""
    if not bench.drawings:
        return None
    shown: list[Drawing] = []
    size = 0
    for drawing in bench.drawings:
        size += sum(map(len, (drawing.real, drawing.teacher, *drawing.students)))
        if size > room:
            break
        shown.append(drawing)
    if not shown:
        return None
    students = [plain(student.name, 24) for student in bench.students]
    left = len(bench.drawings) - len(shown)
    return {
        "heads": ["real picture", f"{plain(bench.teacher.name, 24)} (teacher)", *students],
        "rows": [_picture_row(drawing, students) for drawing in shown],
        "caption": "Each row is one caption and one seed."
        + (f" {plural(left, 'more caption')} did not fit this page." if left else ""),
    }


def _picture_row(drawing: Drawing, students: Sequence[str]) -> dict[str, Any]:
    caption = plain(drawing.caption, 80)
    who = ["the real picture", "the teacher", *students]
    cells = [
        (_data_uri(png), f"{caption}, by {name}" if place else f"{caption}, {name}")
        for place, (png, name) in enumerate(zip((drawing.real, drawing.teacher, *drawing.students), who, strict=False))
    ]
    return {"caption": caption, "seed": drawing.seed, "cells": cells}


def _data_uri(png: str) -> str:
    """A PNG for `src`; what is none, or is broken, becomes an empty picture."""
    try:
        data = base64.b64decode(png, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    return f"data:image/png;base64,{png}" if data.startswith(b"\x89PNG\r\n") else ""


# ---------------------------------------------------------------------------------------------- training


def training(view: View) -> dict[str, Any] | None:
    """Every loss term of a distillation over its steps."""
    log = view.report.log
    if log is None:
        return None
    ends = [f"{term} from {number(curve[0][1])} to {number(curve[-1][1])}"
            for term, curve in ((t, charts.smoothed(log.steps, log.terms[t])) for t in log.terms) if curve]  # fmt: skip
    return {
        "pictures": [charts.loss_curve(f"loss-{i}", term, log) for i, term in enumerate(log.terms)],
        "caption": plain(
            f"{plural(len(log.steps), 'logged step')}, up to step {max(log.steps)}: {', '.join(ends)}.", 500
        ),
    }


# ---------------------------------------------------------------------------------------------- other runtimes


def comparison(view: View) -> dict[str, Any] | None:
    """Rank transfer between profiles, and what each plan would save under each of them."""
    found = view.report.comparison
    if found is None:
        return None
    return {
        "sentence": _comparison_sentence(found),
        "spearman": _spearman_table(found),
        "plans": _plans_table(found) if found.plans else None,
    }


def _comparison_sentence(found: Comparison) -> str:
    names = [profile.name for profile in found.profiles]
    least, i, j = min((found.spearman[i][j], i, j) for j in range(len(names)) for i in range(j))
    own = min(profile.split_half for profile in found.profiles)
    rank = f"{names[i]} and {names[j]} rank the units"
    said = f"{rank} with" if len(names) == 2 else f"Of {len(names)} profiles, {rank} least alike:"
    return plain(
        f"{said} Spearman {least:.3f}. A profile’s own odd and even runs agree in {own:.3f} or more; no other profile "
        "can agree better.",
        400,
    )


def _spearman_table(found: Comparison) -> Table:
    names = [plain(profile.name, 40) for profile in found.profiles]
    columns = [Column("profile", numeric=False), *map(Column, names), Column("own halves")]
    rows = [
        [Cell(name), *(Cell(f"{value:.3f}", value=value) for value in (*row, profile.split_half))]
        for name, profile, row in zip(names, found.profiles, found.spearman, strict=True)
    ]
    return Table("spearman", "Rank correlation of the units’ redundancy, profile by profile.", columns, rows)


def _plans_table(found: Comparison) -> Table:
    columns = [Column("plan", numeric=False), *(Column(plain(p.name, 40), "student / teacher") for p in found.profiles)]
    rows = [[Cell(plain(plan.name, 60)), *_plan_cells(plan)] for plan in found.plans]
    return Table("transfer", "What each plan would take under each profile; * is above its budget.", columns, rows)


def _plan_cells(plan: ComparedPlan) -> Iterator[Cell]:
    for one in plan.predicted:
        if one is None:
            yield NONE
            continue
        over = "*" if plan.budget_ratio is not None and one.ratio > plan.budget_ratio else ""
        yield Cell(f"{ratio(one.ratio)}{over}", f"[{one.low:.2f}, {one.high:.2f}]", one.ratio, one.low, one.high)
