"""The student's training: every loss term over its steps."""

from __future__ import annotations

from asdm_prof.records import TrainingLog
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import number, plain, plural
from asdm_prof.renderers.html import charts
from asdm_prof.renderers.html.content import Figure, Picture, Section


def section(report: Report) -> Section | None:
    """The log of a distillation."""
    log = report.log
    if log is None:
        return None
    pictures = [Picture(charts.loss_curve(f"loss-{i}", term, log), "A loss term") for i, term in enumerate(log.terms)]
    return Section("The student’s training", [Figure(pictures, [_caption(log)])])


def _caption(log: TrainingLog) -> str:
    """How long it trained, and from what to what each term went."""
    curves = {term: charts.smoothed(log.steps, values) for term, values in log.terms.items()}
    ends = [f"{term} from {number(curve[0][1])} to {number(curve[-1][1])}" for term, curve in curves.items() if curve]
    begun = ", ".join(f"{name} from step {first}" for name, first in log.stages.items())
    stages = f" ({begun})" if begun else ""
    steps = f"{plural(len(log.steps), 'logged step')}, up to step {max(log.steps)}{stages}"
    return plain(f"{steps}: {', '.join(ends)}.", 500)
