"""Redundancy: a dot with its interval for every unit, and a table that can be sorted, filtered and copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from asdm.records.measurement import mac_unit
from asdm_prof.analysis.edits import unit_damages
from asdm_prof.analysis.rank import Ranked
from asdm_prof.records import PartRecord
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import fixed, number, percent, plain, plural, second_unit
from asdm_prof.renderers.html import keys
from asdm_prof.renderers.html.content import Cell, Column, Controls, Paragraph, Section, Table, picture
from asdm_prof.renderers.html.svg import KINDS, redundancy_dots
from asdm_prof.renderers.html.tables import Field, damage_cell, interval_cells, number_cells, shortened, table

TOOLS = Markup(
    '<div class="row tools" hidden>\n<label>Filter <input type="search" id="filter" placeholder="up_blocks.3, '
    'Transformer …" autocomplete="off" aria-controls="table-units"></label>\n'
    '<button type="button" id="copy">Copy as CSV</button>\n<output id="status" class="quiet"></output>\n</div>'
)
EXPLAINED = (
    "A unit’s redundancy is its share of the time divided by its share of the parameters: at 10× it takes ten times as "
    "long as its size suggests. Units whose intervals overlap with that of the first of their tie group cannot be "
    "distinguished from it."
)
SHOWN_IN_TERMINAL = 10
TERMINAL_ORDER = ("rank", "tie group", "unit", "redundancy", "share", "parameters", "latency")


def redundancy(report: Report) -> Section:
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


def section(report: Report) -> Section:
    """All units from most to least redundant; the terminal shows the first of them."""
    whole = unit_table(report)
    first = replace(whole, rows=whole.rows[:SHOWN_IN_TERMINAL], medium="terminal")
    return Section("", [Controls(TOOLS), replace(whole, medium="page"), first])


def unit_table(report: Report) -> Table:
    """Every unit from most to least redundant, with glue and the whole underneath."""
    profile, ranked, damages = report.profile, report.ranked, unit_damages(report.damage)
    units = {unit.fqn: unit for unit in profile.units}
    parts = [units[row.fqn] for row in ranked]
    scale, second = second_unit(min(part.latency_s.median for part in parts))
    macs, macs_unit = mac_unit(profile.whole.macs)
    names = [Cell(plain(row.fqn), short=plain(row.label), kind=row.kind) for row in ranked]
    redundancies = interval_cells([row.redundancy for row in ranked])
    redundancies = shortened(redundancies, [number(row.redundancy.median) for row in ranked])
    sizes = number_cells([part.params / 1e6 for part in parts])
    sizes = shortened(sizes, [f"{100 * row.params_share:.2f} %" for row in ranked])
    times = interval_cells([part.latency_s for part in parts], scale)
    times = shortened(times, [number(1e3 * row.latency_s.median) for row in ranked])
    shares = interval_cells([part.share for part in parts], 1e-2)
    shares = shortened(shares, [percent(row.latency_share.median) for row in ranked])
    fields: list[Field] = [
        (Column("rank", terminal_from=0), number_cells([row.rank for row in ranked], 0)),
        (Column("unit", numeric=False, terminal_from=0, full_from=100), names),
        (Column("kind", numeric=False), [Cell(KINDS[row.kind]) for row in ranked]),
        (Column("parameters", "M", terminal_from=70, short="of params"), sizes),
        *(
            (Column(name, macs_unit), number_cells([getattr(part, f"{name}_macs") / macs or None for part in parts]))
            for name in ("conv", "linear", "attention")
        ),
        (Column("latency", second, terminal_from=80, short="ms"), times),
        (Column("share", "%", terminal_from=60, short="of time"), shares),
        (Column("redundancy", "×", terminal_from=0, bounds_from=50, short="redundancy"), redundancies),
        (Column("tie group", terminal_from=0, short="tie"), number_cells([row.tie_group for row in ranked], 0)),
    ]
    if any(part.roofline for part in parts):
        attained = [100 * part.roofline.attained if part.roofline else None for part in parts]
        fields.append((Column("of roof", "%"), number_cells(attained, 0)))
    if damages:
        cells = [damage_cell(damages[row.fqn][1] if row.fqn in damages else None) for row in ranked]
        fields.append((Column("damage"), cells))
    caption = f"{len(parts)} units, most redundant first. One MAC is two FLOPs; in brackets the 95 % interval."
    groups = (("glue", profile.glue), ("units + glue", profile.parts))
    foot = [_sums(name, group, scale, macs, len(fields)) for name, group in groups]
    return table("units", caption, fields, foot=foot, head=1, sortable=True, terminal_order=TERMINAL_ORDER)


def _sums(name: str, parts: Sequence[PartRecord], scale: float, macs: float, width: int) -> list[Cell]:
    """Sums over parts, so that a reader can add the columns up."""
    counts = [sum(part.params for part in parts) / 1e6]
    counts += [sum(getattr(part, f"{what}_macs") for part in parts) / macs for what in ("conv", "linear", "attention")]
    time = sum(part.latency_s.median for part in parts) / scale
    share = 100 * sum(part.share.median for part in parts)
    cells = [*number_cells([value or None for value in counts], 2), Cell(fixed(time, 0)), Cell(fixed(share, 1))]
    row = [Cell(""), Cell(name), Cell(""), *cells]
    return row + [Cell("")] * (width - len(row))
