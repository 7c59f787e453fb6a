"""Options: what each unit could become, what that saves and what it does to the output."""

from __future__ import annotations

from asdm.plan.edits import RemoveUnit, ReplaceUnit
from asdm_prof.planner.choices import Choice, edits_key, make_choices
from asdm_prof.records import Interval
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, plural
from asdm_prof.renderers.html.content import NONE, Cell, Column, Section
from asdm_prof.renderers.html.tables import Field, damage_cell, number_cells, table

USUAL = ("gri_attention", "cond_conv")  # what every profile times


def section(report: Report) -> Section | None:
    """A row for every option of every unit, best first; None where a profile timed no more than the usual ones."""
    profile, damage = report.profile, report.damage
    if all(option.replacement in USUAL for option in profile.options):
        return None
    measured: dict[frozenset[str], Interval] = {}
    for one in (*damage.dropped, *damage.edits) if damage else ():
        measured[edits_key(one.edits)] = one.damage
    order = {unit.fqn: i for i, unit in enumerate(profile.units)}
    choices = [c for c in make_choices(profile) if isinstance(c.edit, ReplaceUnit | RemoveUnit)]
    choices.sort(key=lambda c: (order[_unit(c)], -c.saving))
    harm = [_harm(choice, measured) for choice in choices]
    labels = {unit.fqn: unit.label for unit in profile.units}
    scale = 1e3 * profile.whole.latency_s.median
    fields: list[Field] = [
        (Column("unit", numeric=False), [Cell(plain(_unit(c)), short=labels[_unit(c)]) for c in choices]),
        (Column("becomes", numeric=False), [Cell(plain(_name(c))) for c in choices]),
        (Column("saves", "ms"), number_cells([scale * c.saving for c in choices])),
        (Column("of the call", "%"), number_cells([100 * c.saving for c in choices], 2)),
        (Column("parameters", "%"), number_cells([100 * c.params for c in choices], 2)),
        (Column("damage"), [damage_cell(measured.get(edits_key(c.edits))) for c in choices] if measured
         else number_cells([c.damage for c in choices])),
        (Column("beaten by", numeric=False),
         [Cell(plain(name)) if name else NONE for name in _beaten_by(choices, harm)]),
    ]  # fmt: skip
    by = "measured damage" if measured else "the structural prior"
    caption = (
        f"{plural(len(choices), 'option')} of {len({_unit(c) for c in choices})} units, most saved first; by {by}. An "
        "option is beaten by another of its unit that saves as much and does no more damage."
    )
    return Section("What each unit could become", [table("options", caption, fields, sortable=True, medium="page",
                                                         summary="Every unit’s options as a table")])  # fmt: skip


def _unit(choice: Choice) -> str:
    (fqn,) = choice.touches
    return fqn


def _name(choice: Choice) -> str:
    return choice.edit.what if isinstance(choice.edit, ReplaceUnit) else "nothing"


def _harm(choice: Choice, measured: dict[frozenset[str], Interval]) -> float | None:
    if not measured:
        return choice.damage
    found = measured.get(edits_key(choice.edits))
    return found.value if found else None


def _beaten_by(choices: list[Choice], harm: list[float | None]) -> list[str]:
    """For every option the one of its unit that saves most of those that beat it, or an empty string."""
    names = []
    for i, choice in enumerate(choices):
        own = harm[i]
        better = [
            other
            for j, other in enumerate(choices)
            if other.touches == choice.touches and j != i and own is not None and (theirs := harm[j]) is not None
            and other.saving >= choice.saving and theirs <= own and (other.saving, -theirs) != (choice.saving, -own)
        ]  # fmt: skip
        names.append(_name(max(better, key=lambda other: other.saving)) if better else "")
    return names
