"""Options: what each unit could become, what that saves and what it does to the output."""

from __future__ import annotations

from collections.abc import Iterator

from asdm.plan.edits import RemoveUnit, ReplaceUnit
from asdm_prof.planner.choices import Choice, edits_key, make_choices
from asdm_prof.records import Damage, Interval
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, plural
from asdm_prof.renderers.html.content import NONE, Cell, Column, Section
from asdm_prof.renderers.html.tables import Field, damage_cell, number_cells, table

USUAL = ("gri_attention", "cond_conv")  # what every profile times


def section(report: Report) -> Section | None:
    """A row for every option of every unit, best first; None where a profile timed no more than the usual ones."""
    profile = report.profile
    if all(option.replacement in USUAL for option in profile.options):
        return None
    measured = _by_edits(report.damage)
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
        *_damages(report, choices),
        (Column("beaten by", numeric=False),
         [Cell(plain(name)) if name else NONE for name in _beaten_by(choices, harm)]),
    ]  # fmt: skip
    caption = (
        f"{plural(len(choices), 'option')} of {len({_unit(c) for c in choices})} units, most saved first; by "
        f"{_measure(report)}. An option is beaten by another of its unit that saves as much and does no more damage."
    )
    if report.other_damage:
        before, after = (damage.prompts for _, damage in _sides(report))
        caption += (
            f" Before: units as the weights make them, on {plural(before, 'picture')}; after: units of a library (asdm "
            f"distill-units), on {plural(after, 'picture')}."
        )
    return Section("What each unit could become", [table("options", caption, fields, sortable=True, medium="page",
                                                         summary="Every unit’s options as a table")])  # fmt: skip


def _by_edits(damage: Damage | None) -> dict[frozenset[str], Interval]:
    return {edits_key(one.edits): one.damage for one in (*damage.dropped, *damage.edits)} if damage else {}


def _sides(report: Report) -> list[tuple[str, Damage]]:
    """The report's measured damage by the heading of its column: one, or the one from before and the one from after."""
    if report.damage is None or report.other_damage is None:
        return [("damage", report.damage)] if report.damage else []
    both = sorted((report.damage, report.other_damage), key=lambda damage: damage.units_sha256 is not None)
    return [("damage before", both[0]), ("damage after", both[1])]


def _measure(report: Report) -> str:
    """What options are compared by."""
    heading = next((heading for heading, damage in _sides(report) if damage is report.damage), "the structural prior")
    return "measured damage" if heading == "damage" else heading


def _damages(report: Report, choices: list[Choice]) -> Iterator[Field]:
    for heading, damage in _sides(report):
        measured = _by_edits(damage)
        yield Column(heading), [damage_cell(measured.get(edits_key(choice.edits))) for choice in choices]
    if report.damage is None:
        yield Column("damage"), number_cells([choice.damage for choice in choices])


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
