"""Redundancy: every unit's, with its interval and the units that cannot be distinguished."""

from __future__ import annotations

from collections.abc import Sequence

from asdm_prof.analysis.rank import Ranked
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import number, plain, plural
from asdm_prof.renderers.html import keys
from asdm_prof.renderers.html.content import Paragraph, Section, picture
from asdm_prof.renderers.html.svg import redundancy_dots

EXPLAINED = (
    "A unit’s redundancy is its share of the time divided by its share of the parameters: at 10× it takes ten times as "
    "long as its size suggests. Units whose intervals overlap with that of the first of their tie group cannot be "
    "distinguished from it."
)


def section(report: Report) -> Section:
    """What redundancy is, and a dot for every unit."""
    ranked = report.ranked
    key = [*keys.marks(), *keys.texts("bar: 95 % interval", "bracket: tie group")]
    drawn = picture(redundancy_dots(ranked), "Redundancy of each unit", _caption(ranked), key)
    return Section("", [Paragraph([EXPLAINED], medium="page"), drawn])


def _caption(ranked: Sequence[Ranked]) -> str:
    """How many units are redundant, which stand first, and how many groups can be told apart."""
    over = sum(row.redundancy.median > 1 for row in ranked)
    first = [row for row in ranked if row.tie_group == 1]
    names = ", ".join(row.label for row in first[:6]) + (", …" if len(first) > 6 else "")
    return plain(
        f"{over} of {len(ranked)} units take more time than their size suggests (above 1×). Most of all: {names}, at "
        f"{number(first[0].redundancy.median)}×. Brackets join the units that this run cannot distinguish: "
        f"{plural(ranked[-1].tie_group, 'group')}.",
        400,
    )
