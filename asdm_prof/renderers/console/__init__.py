"""A report in the terminal, in the order of the page: the answer, the tree, the rank, the plan, students, trust.

Tables take the width they may use: 80 columns without wrapping; wider shows more columns, narrower fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asdm.schedule.schedule import Schedule
from asdm_prof.planner.plan import Infeasible
from asdm_prof.records import (
    Comparison,
    Damage,
    Frontier,
    Profile,
    ScheduleFrontier,
    ScheduleValidation,
    Search,
    StepsDamage,
    Validation,
)
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, seconds
from asdm_prof.renderers.console.changes import change_text, diff_table
from asdm_prof.renderers.console.layout import print_sections, rich_table, stdout_console
from asdm_prof.renderers.html.content import Section
from asdm_prof.renderers.html.sections import (
    IN_TERMINAL,
    QUESTIONS,
    across_steps,
    comparison,
    damage,
    frontier,
    schedule as schedules,
    search,
    validation,
)
from asdm_prof.renderers.html.sections.plan import plan_lines
from asdm_prof.renderers.html.sections.tree import tree_table as tree_content
from asdm_prof.renderers.html.sections.units import unit_table

__all__ = [
    "change_text", "diff_table", "infeasible_lines", "plan_lines", "print_record", "print_report", "print_schedule",
    "rank_table", "render", "stdout_console", "tree_table",
]  # fmt: skip

OUTPUT = None
# The sections of what commands write, where each has `of_record`.
SECTIONS: dict[type, Any] = {
    Comparison: comparison, Damage: damage, Frontier: frontier, Search: search, StepsDamage: across_steps,
    Validation: validation,
}  # fmt: skip


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


def print_record(
    record: Comparison | Damage | Frontier | ScheduleFrontier | ScheduleValidation | Search | StepsDamage | Validation,
    console: Console,
) -> None:
    """Print what a command found out: the answer, its tables, and what it took."""
    if isinstance(record, ScheduleValidation):
        print_sections(console, schedules.of_validation(record))
        return
    if isinstance(record, ScheduleFrontier):
        title = "Whole image: latency against damage"
        print_sections(console, [Section(title, [schedules.frontier_table(record)])])
        return
    print_sections(console, SECTIONS[type(record)].of_record(record))


def print_schedule(schedule: Schedule, profile: Profile, frontier: ScheduleFrontier) -> None:
    """Print a schedule's promise, what ran at which step, and the frontier."""
    print_sections(stdout_console(), schedules.of_record(schedule, profile, frontier))


def infeasible_lines(
    error: Infeasible, asked: Mapping[str, str], profile: Profile | None, margin_options: bool = True
) -> list[str]:
    """What is reachable where budgets cannot be met: each by itself, and the cheapest change that makes them meet.

    `margin_options`: whether the command has --validation and --confidence.
    """
    lowest, alone, relaxed = error.lowest, error.alone, error.relaxed
    budgets = " and ".join(plain(text if name == "latency" else f"{text} of {name}") for name, text in asked.items())
    if len(asked) > 1:
        each, together = (
            ", ".join(f"{name} {share:.3f}" for name, share in shares.items()) for shares in (alone, relaxed)
        )
        return [
            f"Error: no legal plan reaches the budgets {budgets} together. Lowest reachable by itself, of the "
            f"teacher's: {each}. Cheapest relaxation of all: {together}.",
            *_margin_lines(error, margin_options),
        ]
    name = next(iter(asked))
    share = lowest if name == "latency" else alone[name]
    whole = "" if name == "latency" else f"'s {name}"
    time = f", {seconds(lowest * profile.whole.latency_s.median)}" if profile is not None and not whole else ""
    return [
        f"Error: no legal plan reaches the budget {budgets}; the lowest reachable is {share:.3f} of the teacher{whole}"
        f"{time}.",
        *_margin_lines(error, margin_options),
    ]


def _margin_lines(error: Infeasible, options: bool) -> list[str]:
    """Whether the rules or the margin for noise forbid a latency budget, and how to get a narrower margin."""
    if "latency" not in error.alone or error.margin <= 0:
        return []
    without = f"{error.lowest - error.margin:.3f} without the margin of {error.margin:.3f} for the profile's noise"
    if not error.by_noise:
        return [f"The rules of pruning forbid it: the lowest is {without}."]
    more = ", from --validation, or from a lower --confidence (0.5: no margin)" if options else ""
    return [
        f"The rules of pruning allow it: the lowest is {without}. A narrower margin comes from a profile of a quieter "
        f"machine or a longer --time-budget{more}."
    ]
