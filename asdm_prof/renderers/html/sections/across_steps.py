"""Damage across steps: what inheriting does at each age, and how far that predicts a whole image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asdm_prof.records import StepsDamage
from asdm_prof.records.steps_damage import PassDamage, StepsAdditivity
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import amount, percent, plain, plural
from asdm_prof.renderers.html.content import NONE, Cell, Column, Paragraph, Section, Table
from asdm_prof.renderers.html.tables import table


def section(report: Report) -> Section | None:
    """The damage that the report's schedule was planned by."""
    if report.steps_damage is None:
        return None
    blocks = [Paragraph([line]) for line in sentences(report.steps_damage)]
    return Section("Inheriting across steps", [*blocks, passes_table(report.steps_damage)])


def of_record(damage: StepsDamage) -> list[Section]:
    """What `asdm-prof sensitivity --across-steps` prints."""
    lead, *more = sentences(damage)
    return [
        Section("", [Paragraph([lead], "lead")]),
        Section("What does inheriting do to the output?", [passes_table(damage)]),
        Section("Does it add up?", [Paragraph([line]) for line in more]),
    ]


def sentences(damage: StepsDamage) -> Iterator[str]:
    """What was measured, how it adds up, and what fewer steps do instead."""
    yield plain(
        f"Mean square error of the guided output along the teacher's trajectories: {damage.prompts} prompts, "
        f"{damage.steps} steps of {damage.sampler} at guidance {damage.guidance_scale:g} ({damage.family}).", 400,
    )  # fmt: skip
    if damage.additivity:
        yield additivity_sentence(damage.additivity, len(damage.schedules))
    for one in damage.fewer_steps:
        yield (
            f"With {one.steps} steps instead of {damage.steps}, the final latent is {amount(one.damage)} away; its own "
            f"mean square is {amount(damage.latent_power)}."
        )


def additivity_sentence(measured: StepsAdditivity, schedules: int) -> str:
    """How well single steps predict random schedules, by both ways of adding."""
    fits = {"as squares": measured.summed, "as amplitudes": measured.amplitudes}
    scores = [
        f"{name}: Spearman {fit.spearman.value:.3f} [{fit.spearman.low:.3f}, {fit.spearman.high:.3f}], R² of "
        f"logarithms {fit.r2.value:.3f}"
        for name, fit in fits.items()
    ]
    used = "as squares" if measured.used == "sum" else "as amplitudes"
    return (
        f"{plural(schedules, 'random schedule')}, run freely to the end and predicted from single steps, errors added "
        f"{'; '.join(scores)}. Schedules are planned by errors {used}, times {measured.factor:.3g}; a schedule left "
        f"out is then predicted within {percent(measured.left_out)} in the mean."
    )


def passes_table(damage: StepsDamage) -> Table:
    """Every pass with its mean error over the steps, by age."""
    ages = range(max(len(step) for one in damage.damages for step in one.error))
    fields = [(Column("pass", numeric=False, terminal_from=0), [Cell(plain(one.name)) for one in damage.damages])]
    for age in ages:
        title = f"{age + 1} step{'s' if age else ''} later"
        fields.append((Column(title, terminal_from=0 if age < 3 else 90), [_cell(one, age) for one in damage.damages]))
    return table("across-steps", "Mean square error of the guided output, mean over the steps.", fields)


def _cell(one: PassDamage, age: int) -> Cell:
    values: Sequence[float] = [
        step[age][min(age, len(step[age]) - 1)] or 0.0
        for step in one.error
        if len(step) > age and step[age][min(age, len(step[age]) - 1)] is not None
    ]
    if not values:
        return NONE
    mean = sum(values) / len(values)
    return Cell(amount(mean), value=mean)
