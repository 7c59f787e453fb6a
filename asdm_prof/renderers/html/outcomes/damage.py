"""What edits do to the output."""

from __future__ import annotations

from typing import Any

from asdm_prof.records import Additivity, Damage, Interval
from asdm_prof.renderers._format import amount_text, number, plain, plural
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.svg import LEFT, STEP
from asdm_prof.renderers.html.tables import Cell, Column, Table, damage_cell
from asdm_prof.renderers.html.view import View, damage_word, edits_share


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
