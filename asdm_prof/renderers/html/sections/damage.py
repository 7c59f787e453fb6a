"""Damage: what every edit does to the output, whether damages add up, and what it took to find out."""

from __future__ import annotations

from collections.abc import Iterator

from asdm.plan.edits import AnyEdit
from asdm_prof.analysis.edits import shares, unit_damages
from asdm_prof.records import Additivity, Damage, Interval, Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import amount_text, between, number, percent, plain, plural, quoted, seconds
from asdm_prof.renderers.html import charts, keys
from asdm_prof.renderers.html.content import Cell, Column, Figure, Heading, Paragraph, Picture, Section, Table, missing
from asdm_prof.renderers.html.parts import damage_word
from asdm_prof.renderers.html.svg import LEFT, STEP
from asdm_prof.renderers.html.tables import Field, damage_cell, table


def section(report: Report) -> Section:
    """The units' own edits in the order of their redundancy, and every edit as a table."""
    damage, profile = report.damage, report.profile
    if damage is None or not damage.edits:
        command = f"asdm-prof sensitivity {quoted(profile.family)} --data emoji -o damage.json"
        purpose = " measures what each edit does to the output, on real weights."
        return Section("", [missing("Damage was not measured for this report. ", command, purpose)])
    damages = unit_damages(damage)
    rows = [(row.fqn, row.label, damages[row.fqn][1] if row.fqn in damages else None) for row in report.ranked]
    pictures = []
    if any(amount and amount.value > 0 for *_, amount in rows):
        pictures = [Picture(charts.damage_dots(rows, LEFT, STEP), "Damage of each unit’s edit")]
    key = keys.texts("damage of the unit’s own edit, in the order above", "bar: 95 % interval")
    drawn = Figure(pictures, [_caption(damage, damages)], key if pictures else ())
    return Section("", [drawn, damage_table(damage, profile), *_additivity(damage)])


def _additivity(damage: Damage) -> Iterator[Heading | Figure]:
    """Whether damages of single edits add up to that of a plan."""
    measured = damage.additivity
    if measured is None:
        return
    points = [(plan.summed if measured.used == "sum" else plan.with_pairs, plan.damage) for plan in measured.plans]
    drawable = [(predicted, amount) for predicted, amount in points if predicted > 0 and amount.low > 0]
    label = "Damage of joint plans, predicted and measured"
    pictures = [Picture(charts.additivity(drawable), label)] if drawable else []
    yield Heading("Does damage add up?")
    caption = "The chart shows that prediction; on the line it agrees with the measurement."
    yield Figure(pictures, [f"{additivity_sentence(measured)} {caption}"])


def of_record(damage: Damage) -> list[Section]:
    """What `asdm-prof sensitivity` prints: the answer, every edit, whether they add up, and what it took."""
    lines = [additivity_sentence(damage.additivity)] if damage.additivity else []
    for one in damage.agreement:
        lines.append(f"{plain(one.score).capitalize()}: Spearman {_fit(one.spearman)} over {one.edits} edits.")
    lines.append(_work_sentence(damage))
    return [
        Section("", [Paragraph([damage_sentence(damage)], "lead")]),
        Section("What does each edit do to the output?", [damage_table(damage)]),
        Section("Does it add up?", [Paragraph([line]) for line in lines]),
    ]


def damage_sentence(damage: Damage) -> str:
    """What damage is, and on what it was measured."""
    return plain(
        f"Damage is the mean square error of the output ({damage.prediction_type}) per element, over {damage.prompts} "
        f"pictures × {len(damage.timesteps)} timesteps of {damage.data}; the mean square of the output "
        f"itself is {number(damage.teacher_power)}.",
        400,
    )


def _caption(damage: Damage, damages: dict[str, tuple[AnyEdit, Interval]]) -> str:
    sentences = [damage_sentence(damage)]
    if damages:
        unit = min(damages, key=lambda fqn: damages[fqn][1].value)
        edit, least = damages[unit]
        sentences.append(f"The least is {amount_text(least)}, of {unit} {damage_word(edit)}.")
    if damage.agreement:
        scores = ", ".join(f"{one.score} {one.spearman.value:.2f}" for one in damage.agreement)
        sentences.append(f"Cheap scores and their Spearman correlation with it: {scores}.")
    return plain(" ".join(sentences), 600)


def additivity_sentence(measured: Additivity) -> str:
    """How well single edits predict random joint plans, summed or with their neighbours."""
    fits = {"the sum": measured.summed, "the sum and pairs of neighbours": measured.with_pairs}
    scores = [f"{name}: Spearman {_fit(fit.spearman)}, R² {_fit(fit.r2)}, of a straight line {_fit(fit.r2_line)}"
              for name, fit in fits.items()]  # fmt: skip
    used = [*fits][0 if measured.used == "sum" else 1]
    plans = plural(len(measured.plans), "random joint plan")
    return f"{plans}, predicted from single edits by {'; '.join(scores)}. Plans use {used}."


def _fit(value: Interval) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _work_sentence(damage: Damage) -> str:
    work = damage.work
    return (
        f"It took {seconds(work.seconds)}: {number(work.done_forwards)} teacher's forwards of "
        f"{number(work.plain_forwards)} that a plain loop runs ({number(work.plain_forwards / work.done_forwards)}× "
        f"fewer); the least possible is {number(work.least_forwards)}, {seconds(work.least_s)}, and "
        f"{percent(work.reached)} of the time was that."
    )


def damage_table(damage: Damage, profile: Profile | None = None) -> Table:
    """Every edit, least damage first, with the share of the profile that it is about."""
    rows = sorted(damage.edits, key=lambda row: row.damage.value)
    names = [" and ".join(map(str, row.edits)) for row in rows]
    edits = [Cell(plain(name, 120), short=plain(name, 90)) for name in names]
    fields: list[Field] = [
        (Column("edit", numeric=False, terminal_from=0), edits),
        (Column("damage", terminal_from=0, bounds_from=0), [damage_cell(row.damage) for row in rows]),
    ]
    if profile:
        about = [shares(profile, *row.edits) for row in rows]
        for name, place, digits in (("share of time", 0, 1), ("share of parameters", 1, 2)):
            cells = [Cell(f"{100 * one[place]:.{digits}f}", value=100 * one[place]) for one in about]
            fields.append((Column(name, "%"), cells))
    changes = [row.clip_score_change for row in rows]
    if any(changes):
        cells = [Cell(f"{c.value:+.2f}", between(c, "+.2f"), c.value) if c else Cell("") for c in changes]
        fields.append((Column("CLIP score", terminal_from=0, bounds_from=0, on_page=False), cells))
    caption = f"{plural(len(rows), 'edit')}, least damage first; in brackets the 95 % interval."
    return table("damage", caption, fields, summary="Every edit’s damage as a table")
