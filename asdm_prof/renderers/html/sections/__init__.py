"""The sections of a report, one file each: `section(report)` gives its sentences, tables and pictures, or None.

They stand here in the order of the page, under the five questions that a report answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from asdm_prof.renderers import Report
from asdm_prof.renderers.html.content import Section
from asdm_prof.renderers.html.sections import (
    answer,
    bench,
    blocks,
    comparison,
    damage,
    environment,
    families,
    frontier,
    plan,
    prediction,
    redundancy,
    reproduce,
    roofline,
    search,
    sources,
    structure,
    training,
    tree,
    trust,
    units,
    validation,
    why,
)

MakeSection = Callable[[Report], Section | None]


@dataclass(frozen=True)
class Question:
    """One of the five questions, with the sections that answer it; `short` is its title in the page's navigation."""

    name: str
    title: str
    sections: tuple[MakeSection, ...]
    short: str = ""


QUESTIONS = (
    Question("answer", "The answer", (answer.section,)),
    Question(
        "time",
        "Where does the time go?",
        (tree.section, roofline.section, blocks.section, structure.section, families.section),
    ),
    Question(
        "redundancy",
        "What is redundant, and how sure are we?",
        (redundancy.section, damage.section, units.section),
        "What is redundant?",
    ),
    Question(
        "plan",
        "What would it buy?",
        (
            plan.section,
            why.section,
            frontier.section,
            prediction.section,
            validation.section,
            bench.section,
            training.section,
            search.section,
        ),
    ),
    Question(
        "trust",
        "Can I believe it?",
        (trust.section, comparison.section, reproduce.section, sources.section, environment.section),
    ),
)
# What a terminal shows of a report; commands print the other records by themselves.
IN_TERMINAL = (
    answer.section,
    tree.section,
    roofline.section,
    units.section,
    plan.section,
    bench.section,
    trust.section,
)


def with_sections(question: str, *sections: MakeSection) -> tuple[Question, ...]:
    """The page's questions, of which one has more sections at its end."""
    return tuple(
        replace(one, sections=(*one.sections, *sections)) if one.name == question else one for one in QUESTIONS
    )
