"""A report in the terminal, in the order of the page: the answer, the tree, the rank, the plan, students, trust.

Tables take the width they may use: 80 columns without wrapping; wider shows more columns, narrower fewer.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from asdm_prof.analysis.rank import rank
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import kernel_sentence
from asdm_prof.renderers.console.comparisons import change_text, diff_table, print_comparison, print_validation
from asdm_prof.renderers.console.damage import print_damage
from asdm_prof.renderers.console.layout import QUIET, print_section, stdout_console
from asdm_prof.renderers.console.plans import budget_rows, infeasible_lines, plan_lines, print_frontier
from asdm_prof.renderers.console.profiles import (
    answer,
    made_by,
    peaks_line,
    rank_table,
    roofline_table,
    tree_table,
    trust_table,
    trust_title,
)
from asdm_prof.renderers.console.students import bench_table, print_search, quality_table

__all__ = [
    "answer", "budget_rows", "change_text", "diff_table", "infeasible_lines", "plan_lines", "print_comparison",
    "print_damage", "print_frontier", "print_report", "print_search", "print_validation", "rank_table", "render",
    "stdout_console", "tree_table",
]  # fmt: skip

OUTPUT = None
SHOWN_OF_RANK = 10


def render(report: Report, folder: Path) -> list[Path]:
    """Print the report on stdout; no file is written."""
    print_report(report, stdout_console())
    return []


def print_report(report: Report, console: Console) -> None:
    """Print the whole report in as many columns as the console has."""
    profile, width = report.profile, console.width
    console.print(Text(answer(profile), style="bold"))
    print_section(console, "Where does the time go?", tree_table(profile, width))
    if profile.peaks is not None:
        said = (peaks_line(profile.peaks), kernel_sentence(profile))
        lines = [Text(line, style=QUIET) for line in said if line]
        print_section(console, "What bounds it?", roofline_table(profile), *lines)
    print_section(console, "What is redundant?", rank_table(rank(profile)[:SHOWN_OF_RANK], width))
    if report.plan is not None:
        print_section(console, "What would it buy?", *(Text(line) for line in plan_lines(report.plan, profile)))
    for bench in report.benches:
        print_section(console, "What did it buy?", bench_table(bench, width))
        if any(student.quality for student in bench.students):
            console.print(quality_table(bench, width))
    print_section(console, trust_title(profile), trust_table(profile), Text(made_by(profile), style=QUIET))
