"""What was found beside the profile: validation, frontier, reasons, damage, quality, pictures, training, runtimes.

Each function returns what the template shows of it, or None (an empty list) where it was not measured.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from asdm import files
from asdm.plan import AnyEdit, ShadowPrice, resolve
from asdm.results import MEASURES, BenchResult, Drawing, Estimate, Metric
from asdm_prof import evidence, resemblance
from asdm_prof.records import (
    Additivity,
    Budgets,
    ComparedPlan,
    Comparison,
    Contestant,
    Damage,
    Frontier,
    FrontierPoint,
    Interval,
    PartRecord,
    Profile,
    Proof,
    TrainingLog,
    ValidatedPlan,
)
from asdm_prof.renderers._format import BOUNDS, amount, amount_text, number, percent, plain, plural, ratio
from asdm_prof.renderers._html import charts
from asdm_prof.renderers._html.svg import LEFT, STEP, Predicted, prediction_scatter
from asdm_prof.renderers._html.tables import NONE, Cell, Column, Table, damage_cell, resemblance_table
from asdm_prof.renderers._html.unet_svg import small_u
from asdm_prof.renderers._html.view import View, damage_word, edits_share

PICTURE_BYTES = 115_000  # of base64, over all benchmarks: with these a report stays below half a megabyte
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


# ---------------------------------------------------------------------------------------------- another model


def beside(view: View) -> dict[str, Any] | None:
    """This model's structure beside another's: what carries over from one to the other, and what does not."""
    other = view.report.beside
    if other is None:
        return None
    rows = resemblance.rows(view.profile, other)
    return {
        "title": plain(f"The same structure as {other.title}?"),
        "sentence": _beside_sentence(view.profile, other, rows),
        "table": resemblance_table(rows, (files.short_name(view.profile.family), files.short_name(other.family))),
    }


def _beside_sentence(ours: Profile, other: Profile, rows: Sequence[resemblance.Row]) -> str:
    *blocks, shallow = rows
    agreement, units = resemblance.rank_agreement(ours, other)
    furthest = max(blocks, key=lambda row: abs(row.ours.time.median - row.theirs.time.median))
    return plain(
        f"The two shallow blocks take {percent(shallow.ours.time.median)} of the time here and "
        f"{percent(shallow.theirs.time.median)} in {other.title}, with {percent(shallow.ours.params)} and "
        f"{percent(shallow.theirs.params)} of the parameters. Over {plural(units, 'unit')} of the same name the order "
        f"by time agrees with a rank correlation of {agreement:.2f}. Furthest apart is {furthest.name}: "
        f"{percent(furthest.ours.time.median)} of the time here, {percent(furthest.theirs.time.median)} there.",
        500,
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

AXES = {
    "latency": "latency, student / teacher",
    "macs": "MACs, student / teacher",
    "params": "parameters, student / teacher",
}


def frontier(view: View) -> dict[str, Any] | None:
    """The least damage at each cost, with the report's own plan, and some of its plans as pictures."""
    found = view.report.frontier
    if found is None or not found.points:
        return None
    spots = _spots(found, found.points)
    told = view.report.own_point()
    own = charts.Spot("this plan", *told) if told else None
    chosen = {"best": _spots(found, found.best), "unlike": _spots(found, found.diverse)}
    return {
        "picture": charts.frontier(spots, own, chosen, AXES.get(found.by, plain(found.by, 40))),
        "caption": _frontier_caption(found, spots, own, view.profile.whole.latency_s.median),
        "rows": list(_rows_of_plans(view, found)),
    }


def _spots(found: Frontier, points: Sequence[FrontierPoint]) -> list[charts.Spot]:
    return [charts.Spot(edits_name(point.edits, SHORT), found.cost(point), point.damage) for point in points]


def _frontier_caption(found: Frontier, spots: Sequence[charts.Spot], own: charts.Spot | None, teacher_s: float) -> str:
    ordered = sorted(spots, key=lambda spot: spot.ratio)
    said = f"{plural(len(spots), 'plan')} that no other beats in both, from {ratio(ordered[0].ratio)}; damage is from "
    said += f"the {found.damage_from}."
    marks = [(found.best, "squares: the {} best within the budgets"), (found.diverse, "on their tip: {} unlike ones")]
    for some, text in marks:
        said += f" {text.format(len(some)).capitalize()}." if some else ""
    price = _step_price(ordered, own.ratio, teacher_s) if own and found.by == "latency" else None
    if price is not None:
        said += f" Around this plan, one more millisecond saved costs {amount(price)} of damage."
    return plain(said, 500)


def _step_price(ordered: Sequence[charts.Spot], at: float, teacher_s: float) -> float | None:
    """Damage per millisecond between the frontier's plans on both sides of a ratio."""
    below = [spot for spot in ordered if spot.ratio < at - 1e-9]
    above = [spot for spot in ordered if spot.ratio >= at - 1e-9]
    if not below or not above or above[0].ratio == below[-1].ratio:
        return None
    rise = below[-1].damage - above[0].damage
    return rise / (1e3 * teacher_s * (above[0].ratio - below[-1].ratio))


def _rows_of_plans(view: View, found: Frontier) -> Iterator[dict[str, Any]]:
    """A few plans from fast to slow; where a budget was asked for, the best within it, and unlike ones."""
    order = sorted(found.points, key=found.cost)
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
    topology = view.profile.topology
    for i, point in enumerate(points):
        try:
            kept = resolve(topology, point.edits)
        except ValueError:
            continue
        yield {
            "picture": small_u(f"{name}-{i}", edits_name(point.edits), topology, kept.gone, kept.replaced),
            "ratio": ratio(point.ratio),
            "damage": f"damage {amount(point.damage)}",
            "edits": plural(len(point.edits), "edit"),
        }


SHORT = 120  # characters of a plan's name where there are a hundred of them


def edits_name(edits: Sequence[AnyEdit], most: int = 300) -> str:
    """A plan in words."""
    return plain("; ".join(map(str, edits)) or "the teacher itself", most)


# ---------------------------------------------------------------------------------------------- why, and baselines


def why(view: View) -> dict[str, Any] | None:
    """What binds the plan, what a little more of a budget is worth, and what every other choice would cost."""
    found = view.plan.why if view.plan else None
    if found is None:
        return None
    told = sorted((r for r in found.regrets if r.damage is not None), key=lambda r: (r.damage or 0.0, r.unit))
    stuck = [r.unit for r in found.regrets if r.damage is None]
    columns = [Column("unit", numeric=False), Column("in the plan", numeric=False), Column("best other", numeric=False)]
    rows = [
        [Cell(plain(r.unit)), Cell(plain(r.choice, 80)), Cell(plain(str(r.other), 80)),
         Cell(amount(r.damage or 0.0), value=r.damage)]
        for r in told
    ]  # fmt: skip
    caption = "Every unit’s other choice and the damage that it would add, the closest calls first."
    if stuck:
        caption += f" No other choice meets the budget for {', '.join(stuck)}."
    binding = f"{' and '.join(found.binding)} binds" if found.binding else "No budget binds"
    return {
        "sentence": plain(
            " ".join([f"{binding[0].upper()}{binding[1:]}.", *map(_price, found.shadow_prices.items())]), 600
        ),
        "table": Table("regrets", plain(caption, 600), [*columns, Column("damage more")], rows) if rows else None,
    }


def _price(named: tuple[str, ShadowPrice]) -> str:
    name, price = named
    said = f"One {price.per} more of {name} is worth {amount(price.damage)} of damage; {number(price.slack)} "
    said += f"{price.per} of the budget is left."
    if price.next_step is not None and price.next_saves is not None:
        said += f" {number(price.next_step)} {price.per} more would buy the next plan, which does "
        said += f"{amount(price.next_saves)} less."
    return said


def budgets(view: View) -> dict[str, Any] | None:
    """Our plan against every baseline at each budget, on measured joint damage."""
    found = view.report.budgets
    if found is None or not found.rows:
        return None
    rivals = [(row.budget, one.name, one.damage) for row in found.rows for one in row.contestants if not one.ours]
    judged = [row for row in found.rows if row.ahead is not None]
    won = sum(row.won for row in judged)
    sure = sum(row.ahead is not None and row.ahead.low > 0 for row in judged)
    return {
        "picture": charts.budgets([(row.budget, row.ours.damage) for row in found.rows], rivals),
        "caption": plain(
            f"Our plan (line) does less damage than the best baseline (squares) within {won} of "
            f"{plural(len(judged), 'budget')}, {sure} of them beyond the 95 % interval; all were measured on "
            f"{found.prompts} pictures of {found.split}, by which no plan was chosen.",
            400,
        ),
        "table": _budgets_table(found),
    }


def _budgets_table(found: Budgets) -> Table:
    columns = [
        Column("budget"),
        Column("plan", numeric=False),
        Column("latency", "student / teacher"),
        Column("measured damage"),
        Column("predicted"),
    ]
    rows = [
        [
            Cell(ratio(row.budget), value=row.budget),
            Cell(plain(one.name, 60)),
            Cell(ratio(one.ratio), value=one.ratio),
            damage_cell(one.damage),
            NONE if one.predicted is None else Cell(amount(one.predicted), value=one.predicted),
        ]
        for row in found.rows
        for one in _without_worse_random(row.contestants)
    ]
    caption = "Everyone within each budget, least measured damage first; of the random plans the best."
    return Table("budgets", caption, columns, rows)


def _without_worse_random(contestants: Sequence[Contestant]) -> list[Contestant]:
    """They stand in the order of their damage."""
    random = [one for one in contestants if one.name.startswith("random")]
    return [one for one in contestants if one not in random[1:]]


# ---------------------------------------------------------------------------------------------- damage


def damage(view: View) -> dict[str, Any] | None:
    """Measured damage of every edit: the units' own in the order of their redundancy, and all as a table."""
    found = view.report.damage
    if found is None or not found.edits:
        return None
    rows = [(row.fqn, row.label, view.damages[row.fqn][1] if row.fqn in view.damages else None) for row in view.ranked]
    drawable = any(done and done.value > 0 for _, _, done in rows)
    return {
        "picture": charts.damage_dots(rows, LEFT, STEP) if drawable else None,
        "caption": _damage_caption(view, found),
        "table": _damage_table(view, found),
        "additivity": _additivity(found.additivity) if found.additivity else None,
    }


def _damage_caption(view: View, found: Damage) -> str:
    measured = f"{found.prompts} pictures × {len(found.timesteps)} timesteps of {found.data}"
    said = f"Damage is the mean square error of the output, over {measured}; the output itself is "
    said += f"{number(found.teacher_power)} strong."
    if view.damages:
        least = min(view.damages, key=lambda fqn: view.damages[fqn][1].value)
        edit, least_done = view.damages[least]
        said += f" Least is done by {least} {damage_word(edit)}: {amount_text(least_done)}."
    if found.agreement:
        scores = ", ".join(f"{one.score} {one.spearman.value:.2f}" for one in found.agreement)
        said += f" What ranks edits without weights, by Spearman with this: {scores}."
    return plain(said, 600)


def _additivity(found: Additivity) -> dict[str, Any]:
    """Whether damages of single edits add up to that of a plan."""
    predicted = [(plan.summed if found.used == "sum" else plan.with_pairs, plan.damage) for plan in found.plans]
    drawn = [(one, measured) for one, measured in predicted if one > 0 and measured.low > 0]
    how = {"sum": found.summed, "sum and pairs of neighbours": found.with_pairs}
    fits = "; ".join(f"{name}: Spearman {_fit(fit.spearman)}, R² {_fit(fit.r2)}" for name, fit in how.items())
    used = "the sum" if found.used == "sum" else "the sum and pairs of neighbours"
    return {
        "picture": charts.additivity(drawn) if drawn else None,
        "caption": plain(
            f"{plural(len(found.plans), 'random joint plan')}, predicted from single edits. {fits}. Plans use {used}, "
            "which is drawn; on the line prediction and measurement agree.",
            500,
        ),
    }


def _fit(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _damage_table(view: View, found: Damage) -> Table:
    columns = [
        Column("edit", numeric=False),
        Column("damage"),
        Column("time it is about", "%"),
        Column("parameters it is about", "%"),
    ]
    rows = []
    for row in sorted(found.edits, key=lambda row: row.damage.value):
        share, params = edits_share(view, *row.edits)
        rows.append(
            [
                Cell(plain(" and ".join(map(str, row.edits)), 120)),
                damage_cell(row.damage),
                Cell(f"{100 * share:.1f}", value=100 * share),
                Cell(f"{100 * params:.2f}", value=100 * params),
            ]
        )
    caption = f"{plural(len(rows), 'edit')}, least damage first; in brackets the 95 % interval."
    return Table("damage", caption, columns, rows)


# ---------------------------------------------------------------------------------------------- quality and pictures


def quality(bench: BenchResult, number_: int) -> list[Markup]:
    """One picture for each metric of a benchmark."""
    names = list(dict.fromkeys(name for student in bench.students for name in student.quality))
    return [_quality_of(bench, name, f"quality-{number_}-{place}") for place, name in enumerate(names)]


def _quality_of(bench: BenchResult, metric: str, name: str) -> Markup:
    rows: list[tuple[str, Metric | None]] = [(student.name, student.quality.get(metric)) for student in bench.students]
    return charts.quality_bars(name, metric, rows, MEASURES[metric].direction if metric in MEASURES else "")


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


# ---------------------------------------------------------------------------------------------- proof


def proof(view: View) -> dict[str, Any] | None:
    """Students made in several ways from equal training: table, pictures, and what follows from them."""
    found = view.report.proof
    if found is None or not found.rows[0].results or not evidence.trained(found):
        return None
    counts = {len(row.results) for row in evidence.trained(found)}
    seeds = "one training seed, so what seeds do is in no interval" if counts == {1} else "pictures and training seeds"
    return {
        "pictures": list(_tradeoffs(found)),
        "caption": plain(
            "Ours as circles, others as squares; the line is the teacher, shaded what he differs by from himself with "
            f"other seeds. Bars are 95 % intervals over {seeds}.",
            400,
        ),
        "table": _proof_table(found),
        "verdicts": [plain(evidence.verdict_sentence(one), 900) for one in evidence.verdicts(found)],
        "groups": [
            (GROUPS[name], [plain(evidence.component_sentence(one), 600) for one in ones])
            for name, ones in evidence.groups(found).items()
        ],
    }


GROUPS = {
    "helped": "What helped",
    "mixed": "What helped in one metric and hurt in another",
    "did not help": "What did not help beyond its interval",
    "hurt": "What hurt",
}


def _tradeoffs(found: Proof) -> Iterator[Markup]:
    for place, measure in enumerate(evidence.judged_measures(found)):
        teacher, students = evidence.spread(found.rows[0], measure.name), []
        for row in evidence.trained(found):
            quality_ = evidence.spread(row, measure.name)
            if row.latency and quality_:
                ours = row.name.startswith("ours")
                students.append(charts.Student(row.name, row.latency.ratio, quality_.estimate(), ours))
        if teacher and students:
            better = "more is better" if measure.more_is_better else "less is better"
            noise = evidence.noise_floor(found, measure.name)
            yield charts.tradeoff(f"proof-{place}", measure.title, students, teacher.value, noise, better)


def _proof_table(found: Proof) -> Table:
    """The table of the proof; every cell with what it sorts by."""
    rows = evidence.table(found)
    first, *names = rows[0]
    columns = [Column(first, numeric=False), *(Column(name) for name in names)]
    cells = [[Cell(plain(row[first], 40)), *(_told(row[name]) for name in names)] for row in rows]
    return Table("proof", "Every row of the proof, and the teacher’s own noise.", columns, cells)


def _told(text: str) -> Cell:
    value, _, interval = text.partition(" ")
    return Cell(value, interval, float(value)) if value else NONE


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
            f"{plural(len(log.steps), 'logged step')}, up to step {max(log.steps)}{_stages(log)}: {', '.join(ends)}.",
            500,
        ),
    }


def _stages(log: TrainingLog) -> str:
    begun = ", ".join(f"{name} from step {first}" for name, first in log.stages.items())
    return f" ({begun})" if begun else ""


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
