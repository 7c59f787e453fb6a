"""What the machine allows, other runtimes, and other models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from asdm.utils import io
from asdm_prof.analysis import structure
from asdm_prof.records import ComparedPlan, Comparison, PartRecord, Profile
from asdm_prof.renderers._format import BOUNDS, kernel_sentence, percent, plain, plural, ratio
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.tables import NONE, Cell, Column, Table, resemblance_table
from asdm_prof.renderers.html.view import View

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
        "kernel": kernel_sentence(profile),
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
    rows = structure.rows(view.profile, other)
    return {
        "title": plain(f"The same structure as {other.title}?"),
        "sentence": _beside_sentence(view.profile, other, rows),
        "table": resemblance_table(rows, (io.short_name(view.profile.family), io.short_name(other.family))),
    }


def _beside_sentence(ours: Profile, other: Profile, rows: Sequence[structure.Row]) -> str:
    *blocks, shallow = rows
    agreement, units = structure.rank_agreement(ours, other)
    furthest = max(blocks, key=lambda row: abs(row.ours.time.median - row.theirs.time.median))
    return plain(
        f"The two shallow blocks take {percent(shallow.ours.time.median)} of the time here and "
        f"{percent(shallow.theirs.time.median)} in {other.title}, with {percent(shallow.ours.params)} and "
        f"{percent(shallow.theirs.params)} of the parameters. Over {plural(units, 'unit')} of the same name the order "
        f"by time agrees with a rank correlation of {agreement:.2f}. Furthest apart is {furthest.name}: "
        f"{percent(furthest.ours.time.median)} of the time here, {percent(furthest.theirs.time.median)} there.",
        500,
    )


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
