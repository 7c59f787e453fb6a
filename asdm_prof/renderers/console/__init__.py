"""A report in the terminal, in the order of the page: the answer, the tree, the rank, the plan, students, trust.

Tables take the width they may use: 80 columns without wrapping; wider shows more columns, narrower fewer.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from asdm_prof.records import Comparison, Damage, Frontier, Profile, Search, Validation
from asdm_prof.renderers import Report
from asdm_prof.renderers.console.changes import change_text, diff_table
from asdm_prof.renderers.console.infeasible import infeasible_lines
from asdm_prof.renderers.console.layout import print_sections, rich_table, stdout_console
from asdm_prof.renderers.html.sections import IN_TERMINAL, QUESTIONS, comparison, damage, frontier, search, validation
from asdm_prof.renderers.html.sections.plan import plan_lines
from asdm_prof.renderers.html.sections.tree import tree_table as tree_content
from asdm_prof.renderers.html.sections.units import unit_table

__all__ = [
    "change_text", "diff_table", "infeasible_lines", "plan_lines", "print_comparison", "print_damage",
    "print_frontier", "print_report", "print_search", "print_validation", "rank_table", "render", "stdout_console",
    "tree_table",
]  # fmt: skip

OUTPUT = None


def render(report: Report, folder: Path) -> list[Path]:
    """Print the report on stdout; no file is written."""
    print_report(report, stdout_console())
    return []


def print_report(report: Report, console: Console) -> None:
    """Print the whole report in as many columns as the console has."""
    for question in QUESTIONS:
        sections = [make(report) for make in question.sections if make in IN_TERMINAL]
        title = "" if question.name == "answer" else question.title
        print_sections(console, [section for section in sections if section], title)


def tree_table(profile: Profile, width: int) -> Table:
    """Block → layer → unit in data-flow order, with bars for the share of time; the longest bar is the top block's."""
    return rich_table(tree_content(Report(profile)), width)


def rank_table(profile: Profile, width: int) -> Table:
    """Units from most to least redundant; those of one tie group cannot be distinguished."""
    return rich_table(unit_table(Report(profile)), width)


def print_comparison(record: Comparison, console: Console) -> None:
    """The rank matrix, and each plan's price by every profile."""
    print_sections(console, comparison.of_record(record))


def print_damage(record: Damage, console: Console) -> None:
    """Every edit from least to most damage, whether damages add up, and what it took."""
    print_sections(console, damage.of_record(record))


def print_frontier(record: Frontier, console: Console) -> None:
    """Some plans along the frontier, and in full the best and the diverse ones within budgets."""
    print_sections(console, frontier.of_record(record))


def print_search(record: Search, console: Console) -> None:
    """The students on the front, every student that was measured, and what it took."""
    print_sections(console, search.of_record(record))


def print_validation(record: Validation, console: Console) -> None:
    """The answer in a sentence, every plan, and what the errors taught."""
    print_sections(console, validation.of_record(record))
