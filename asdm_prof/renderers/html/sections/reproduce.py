"""The commands behind a report."""

from __future__ import annotations

from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers.html.content import Commands, Section


def section(report: Report) -> Section:
    """What to type to make the same."""
    lines = [report.profile.command]
    if report.plan and report.plan.budget:
        lines.append(f"asdm-prof plan --budget {report.plan.budget}")
    lines += [bench.command for bench in report.benches]
    return Section("How to reproduce", [Commands([plain(line, 400) for line in lines])])
