"""Damage: every edit's, whether they add up, and what it took to find out."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asdm_prof.records import Damage, Interval
from asdm_prof.renderers._format import between, exponent, number, percent, plain, plural, seconds
from asdm_prof.renderers.console.layout import QUIET, blank_table, print_section


def print_damage(damage: Damage, console: Console) -> None:
    """The answer in a sentence, every edit from least to most damage, whether they add up, and what it took."""
    console.print(Text(damage_answer(damage), style="bold"))
    print_section(console, "What does each edit do to the output?", damage_table(damage, console.width))
    print_section(console, "Does it add up?", *(Text(line) for line in damage_lines(damage)))


def damage_answer(damage: Damage) -> str:
    """What was measured on what, in one sentence."""
    return (
        f"{plural(len(damage.edits), 'edit')} of {plain(damage.family)}, measured over {damage.prompts} prompts × "
        f"{len(damage.timesteps)} timesteps of {plain(damage.data)}: mean square error of the output "
        f"({plain(damage.prediction_type)}) per element, which is {number(damage.teacher_power)} strong."
    )


def damage_table(damage: Damage, width: int) -> Table:
    """Edits from least to most damage; their names give way in a narrow terminal."""
    table = blank_table()
    scored = any(one.clip_score_change for one in damage.edits)
    table.add_column("edit", no_wrap=True, overflow="ellipsis", max_width=max(16, width - (58 if scored else 34)))
    for title in ("damage", "95 %", *(("CLIP score", "95 %") if scored else ())):
        table.add_column(title, justify="right", no_wrap=True, style=QUIET if title == "95 %" else "")
    for one in sorted(damage.edits, key=lambda one: one.damage.value):
        cells = [exponent(one.damage.value), between(one.damage)]
        if one.clip_score_change:
            cells += [f"{one.clip_score_change.value:+.2f}", between(one.clip_score_change, "+.2f")]
        table.add_row(Text(plain(" and ".join(map(str, one.edits)), 90)), *cells)
    return table


def damage_lines(damage: Damage) -> list[str]:
    """Additivity, cheap scores, and how near the run came to the least work."""
    lines, work = [], damage.work
    if damage.additivity is not None:
        found = damage.additivity
        for name, fit in (("The sum", found.summed), ("With pairs of neighbours", found.with_pairs)):
            lines.append(
                f"{name} predicts {len(found.plans)} random plans with Spearman {_fit(fit.spearman)}, "
                f"R² {_fit(fit.r2)}, of a straight line {_fit(fit.r2_line)}."
            )
        lines.append(f"Plans use {'the sum' if found.used == 'sum' else 'pairs of neighbours'}.")
    for one in damage.agreement:
        lines.append(f"{plain(one.score).capitalize()}: Spearman {_fit(one.spearman)} over {one.edits} edits.")
    lines.append(
        f"It took {seconds(work.seconds)}: {number(work.done_forwards)} teacher's forwards of "
        f"{number(work.plain_forwards)} that a plain loop runs ({number(work.plain_forwards / work.done_forwards)}× "
        f"fewer); the least possible is {number(work.least_forwards)}, {seconds(work.least_s)}, and "
        f"{percent(work.reached)} of the time was that."
    )
    return lines


def _fit(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
