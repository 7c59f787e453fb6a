"""The sections of a report, a file each: `section(report)` gives its sentences, tables and pictures, or None.

They stand here in the order of the page, under the five questions that a report answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

from asdm_prof.renderers import Report
from asdm_prof.renderers.html.content import Section

MakeSection = Callable[[Report], Section | None]


@dataclass(frozen=True)
class Question:
    """One of the five questions, with the sections that answer it; `short` is its title in the page's navigation."""

    name: str
    title: str
    sections: tuple[MakeSection, ...]
    short: str = ""


def _makers(*names: str) -> tuple[MakeSection, ...]:
    """The functions behind names of sections: a file's `section`, or after a point another of its functions."""
    parts = [name.partition(".") for name in names]
    return tuple(getattr(import_module(f"{__name__}.{file}"), own or "section") for file, _, own in parts)


QUESTIONS = (
    Question("answer", "The answer", _makers("answer")),
    Question(
        "time", "Where does the time go?", _makers("tree", "roofline", "paper.blocks", "structure", "paper.families")
    ),
    Question(
        "redundancy",
        "What is redundant, and how sure are we?",
        _makers("units.redundancy", "damage", "units", "options"),
        "What is redundant?",
    ),
    Question(
        "plan",
        "What would it buy?",
        _makers(
            "plan",
            "why",
            "frontier",
            "schedule",
            "across_steps",
            "validation.students",
            "validation",
            "bench",
            "training",
            "search",
        ),
    ),
    Question(
        "trust",
        "Can I believe it?",
        _makers("trust", "comparison", "provenance.commands", "provenance.sources", "provenance.environment"),
    ),
)
# What a terminal shows of a report; commands print the other records by themselves.
IN_TERMINAL = _makers("answer", "tree", "roofline", "units", "plan", "bench", "trust")


def with_sections(question: str, *sections: MakeSection) -> tuple[Question, ...]:
    """The page's questions, of which one has more sections at its end."""
    return tuple(
        replace(one, sections=(*one.sections, *sections)) if one.name == question else one for one in QUESTIONS
    )
