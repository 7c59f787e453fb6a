"""Our plan against every baseline at each latency budget, on measured joint damage."""

from __future__ import annotations

from collections.abc import Sequence

from asdm_prof.renderers import Report
from asdm_prof.renderers._format import amount, between, exponent, plain, plural
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.content import NONE, Cell, Column, Section, Table, picture
from asdm_prof.renderers.html.tables import damage_cell, name_cells, ratio_cell, table
from benchmarks.budgets.records import Budgets, Contestant


def section(report: Report) -> Section | None:
    """Who does the least damage within each budget."""
    budgets: Budgets | None = report.extra.get("budgets")
    if budgets is None or not budgets.rows:
        return None
    ours = [(row.budget, row.ours.damage) for row in budgets.rows]
    rivals = [(row.budget, one.name, one.damage) for row in budgets.rows for one in row.contestants if not one.ours]
    label = "Damage of our plan and of every baseline"
    drawn = picture(charts.budgets(ours, rivals), label, _caption(budgets))
    return Section("Compared with other ways to choose", [drawn, _table(budgets)])


def _caption(budgets: Budgets) -> str:
    judged = [row for row in budgets.rows if row.ahead is not None]
    won = sum(row.won for row in judged)
    sure = sum(row.ahead is not None and row.ahead.low > 0 for row in judged)
    return plain(
        f"Our plan (line) does less damage than the best baseline (squares) within {won} of "
        f"{plural(len(judged), 'budget')}, {sure} of them beyond the 95 % interval; all were measured on "
        f"{budgets.prompts} pictures of {budgets.split}, which were not used to choose a plan.",
        400,
    )


def _table(budgets: Budgets) -> Table:
    rows = [(row.budget, one) for row in budgets.rows for one in _without_worse_random(row.contestants)]
    predicted = [one.predicted for _, one in rows]
    fields = [
        (Column("budget"), [ratio_cell(budget) for budget, _ in rows]),
        (Column("plan", numeric=False), name_cells((one.name for _, one in rows), 60)),
        (Column("latency", "student / teacher"), [ratio_cell(one.ratio) for _, one in rows]),
        (Column("measured damage"), [damage_cell(one.damage) for _, one in rows]),
        (Column("predicted"), [NONE if p is None else Cell(amount(p), value=p) for p in predicted]),
    ]
    caption = "All plans within each budget, least measured damage first; of the random plans the best."
    return table("budgets", caption, fields, summary="All plans within each budget as a table")


def _without_worse_random(contestants: Sequence[Contestant]) -> list[Contestant]:
    """They stand in the order of their damage."""
    random = [one for one in contestants if one.name.startswith("random")]
    return [one for one in contestants if one not in random[1:]]


def rows_of(budgets: Budgets) -> list[dict[str, str]]:
    """Our plan and the best baseline at each budget, as rows of a table."""
    return [
        {
            "budget": f"{row.budget:.2f}",
            "ours ×": f"{row.ours.ratio:.3f}",
            "damage": exponent(row.ours.damage.value),
            "best baseline": plain(row.baseline.name, 16) if row.baseline else "none",
            "its damage": exponent(row.baseline.damage.value) if row.baseline else "",
            "ahead, 95 %": between(row.ahead, ".0e") if row.ahead else "",
            "won": "yes" if row.won else "no",
        }
        for row in budgets.rows
    ]
