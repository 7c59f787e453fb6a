"""This model's structure beside another's: what carries over from one to the other, and what does not."""

from __future__ import annotations

from collections.abc import Sequence

from asdm.utils.runs import short_name
from asdm_prof.analysis import structure
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import percent, plain, plural
from asdm_prof.renderers.html.content import Column, Paragraph, Section, Table
from asdm_prof.renderers.html.tables import Field, interval_cells, name_cells, number_cells, table


def section(report: Report) -> Section | None:
    """Where two models of the same blocks spend their time."""
    ours, theirs = report.profile, report.beside
    if theirs is None:
        return None
    rows = structure.rows(ours, theirs)
    return Section(
        plain(f"The same structure as {theirs.title}?"),
        [Paragraph([_sentence(ours, theirs, rows)]), _table(ours, theirs, rows)],
    )


def _sentence(ours: Profile, theirs: Profile, rows: Sequence[structure.Row]) -> str:
    *blocks, shallow = rows
    agreement, units = structure.rank_agreement(ours, theirs)
    furthest = max(blocks, key=lambda row: abs(row.ours.time.median - row.theirs.time.median))
    return plain(
        f"The two shallow blocks take {percent(shallow.ours.time.median)} of the time here and "
        f"{percent(shallow.theirs.time.median)} in {theirs.title}, with {percent(shallow.ours.params)} and "
        f"{percent(shallow.theirs.params)} of the parameters. Over {plural(units, 'unit')} of the same name the order "
        f"by time agrees with a rank correlation of {agreement:.2f}. Furthest apart is {furthest.name}: "
        f"{percent(furthest.ours.time.median)} of the time here, {percent(furthest.theirs.time.median)} there.",
        500,
    )


def _table(ours: Profile, theirs: Profile, rows: Sequence[structure.Row]) -> Table:
    """Parts of the whole that each block takes in two models; the shallow blocks together stand underneath."""
    models = {short_name(ours.family): [row.ours for row in rows],
              short_name(theirs.family): [row.theirs for row in rows]}  # fmt: skip
    fields: list[Field] = [(Column("block", numeric=False), name_cells(row.name for row in rows))]
    for measure, name in (("time", "time"), ("macs", "MACs"), ("params", "parameters")):
        for model, shares in models.items():
            if measure == "time":
                cells = interval_cells([one.time for one in shares], 1e-2)
            else:
                cells = number_cells([100 * getattr(one, measure) for one in shares])
            fields.append((Column(name, f"{plain(model, 20)}, %"), cells))
    whole = table("beside", "Part of the whole UNet; glue is left out.", fields)
    return Table(whole.name, whole.caption, whole.columns, whole.rows[:-1], whole.rows[-1:])
