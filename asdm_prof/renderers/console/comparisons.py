"""Profiles beside each other, and predictions beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asdm.plan.edits import Prediction
from asdm_prof.analysis.diff import Change, Difference, PartChange
from asdm_prof.records import ComparedPlan, Comparison, ValidatedPlan, Validation
from asdm_prof.renderers._format import number, percent, plain, plural, ratio, seconds
from asdm_prof.renderers.console.layout import COLOURS, QUIET, Column, blank_table, print_section


def diff_table(found: Difference, width: int) -> Table:
    """The whole and every part, before and after; bold where the interval excludes that nothing changed."""
    table = blank_table()
    table.add_column("B / A", no_wrap=True, overflow="ellipsis", max_width=24 if width < 100 else 40)
    columns = [column for column in DIFF_COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    for part in (found.whole, *found.parts):
        name = Text(plain(part.label if width < 100 else part.fqn), style=COLOURS.get(part.kind, "bold"))
        cells = [column.cell(part) for column in columns]
        table.add_row(name, *cells, style="bold" if part.p50.is_real else "")
    return table


def change_text(change: Change) -> str:
    """`+7.3 % [+5.1 %, +9.8 %]`; exact figures have no interval."""
    if change.ratio is None:
        return "" if change.a == change.b else f"from {number(change.a)} to {number(change.b)}"
    interval = (
        f" [{_gain(change.ratio.low)}, {_gain(change.ratio.high)}]" if change.ratio.low < change.ratio.high else ""
    )
    return f"{_gain(change.ratio.median)}{interval}"


def _gain(ratio_: float) -> str:
    return f"{100 * (ratio_ - 1):+.1f} %"


def _change(what: str) -> Callable[[PartChange], str]:
    def cell(part: PartChange) -> str:
        found: Change = getattr(part, what)
        return _gain(found.ratio.median) if found.ratio and found.ratio.median != 1 else ""

    return cell


DIFF_COLUMNS: tuple[Column[PartChange], ...] = (
    Column("A", 60, lambda part: seconds(part.p50.a)),
    Column("B", 60, lambda part: seconds(part.p50.b)),
    Column("p50", 0, lambda part: change_text(part.p50)),
    Column("p95", 80, _change("p95")),
    Column("share", 76, _change("share")),
    Column("MACs", 90, _change("macs")),
    Column("params", 90, _change("params")),
)


# ---------------------------------------------------------------------------------------------- comparison


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The rank matrix, and each plan's price by every profile."""
    console.print(Text(comparison_answer(comparison), style="bold"))
    print_section(console, "Do units rank alike? (Spearman)", spearman_table(comparison))
    if comparison.plans:
        print_section(console, "What would each plan buy?", gain_table(comparison), Text(GAIN_NOTE, style=QUIET))


def comparison_answer(comparison: Comparison) -> str:
    """Which two of the profiles rank units least alike, in one sentence."""
    names = [plain(profile.name) for profile in comparison.profiles]
    pairs = [(comparison.spearman[i][j], i, j) for j in range(len(names)) for i in range(j)]
    least, i, j = min(pairs)
    if len(names) == 2:
        return f"{names[i]} and {names[j]} rank the units of {plain(comparison.family)} with Spearman {least:.3f}."
    return (
        f"Of {len(names)} profiles of {plain(comparison.family)}, {names[i]} and {names[j]} rank the units least "
        f"alike: Spearman {least:.3f}."
    )


GAIN_NOTE = "UNet latency, student / teacher, as each column's profile predicts it; * is above the plan's budget."


def spearman_table(comparison: Comparison) -> Table:
    """Rank correlation of the units, profile by profile; beside it each profile's own odd and even runs."""
    table = _matrix_table([profile.name for profile in comparison.profiles], "own halves")
    for profile, row in zip(comparison.profiles, comparison.spearman, strict=True):
        cells = [f"{value:.3f}" for value in (*row, profile.split_half)]
        table.add_row(Text(plain(profile.name)), *cells)
    return table


def gain_table(comparison: Comparison) -> Table:
    """Every plan's predicted ratio under every profile."""
    table = _matrix_table([profile.name for profile in comparison.profiles])
    for plan in comparison.plans:
        table.add_row(Text(plain(plan.name)), *(_gain_cell(plan, found) for found in plan.predicted))
    return table


def _matrix_table(names: Sequence[str], *more: str) -> Table:
    """A column for each profile, whose words may stand below each other."""
    table = blank_table()
    table.add_column("", no_wrap=False)
    for name in (*names, *more):
        table.add_column(plain(name), justify="right")
    return table


def _gain_cell(plan: ComparedPlan, found: Prediction | None) -> str:
    if found is None:
        return "not timed"
    return ratio(found.ratio) + ("*" if plan.budget_ratio is not None and found.ratio > plan.budget_ratio else "")


# ---------------------------------------------------------------------------------------------- validation


def print_validation(validation: Validation, console: Console) -> None:
    """The answer in a sentence, every plan, and what the errors taught."""
    console.print(Text(validation_answer(validation), style="bold"))
    print_section(console, "Predicted and measured", validation_table(validation, console.width))
    print_section(console, "What it means for a plan", *(Text(line) for line in validation_lines(validation)))


def validation_answer(validation: Validation) -> str:
    """How far measured students were from their predictions, in one sentence."""
    return (
        f"{plural(len(validation.plans), 'random plan')} of {plain(validation.family)} ({plain(validation.backend)}, "
        f"{plain(validation.dtype)}) measured {percent(validation.mape)} of the teacher away from the prediction on "
        f"average, 95 % of them within {percent(validation.p95)}; bias {100 * validation.bias:+.1f} %, rank "
        f"correlation {validation.rank_correlation:.3f}."
    )


def validation_table(validation: Validation, width: int) -> Table:
    """Every plan as student / teacher, predicted and measured; a star where its 95 % interval did not hold."""
    table = blank_table()
    columns = [column for column in VALIDATION_COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    for one in validation.plans:
        table.add_row(*(column.cell(one) for column in columns))
    return table


VALIDATION_COLUMNS: tuple[Column[ValidatedPlan], ...] = (
    Column("edits", 0, lambda one: str(len(one.edits))),
    Column("predicted", 0, lambda one: ratio(one.predicted_ratio)),
    Column("95 %", 60, lambda one: f"[{one.low:.2f}, {one.high:.2f}]", quiet=True),
    Column("measured", 0, lambda one: ratio(one.measured_ratio)),
    Column("95 %", 60, lambda one: f"[{one.measured_low:.2f}, {one.measured_high:.2f}]", quiet=True),
    Column("off by", 0, lambda one: f"{100 * one.error:+.1f} %"),
    Column("", 0, lambda one: "" if one.low <= one.measured_ratio <= one.high else "*"),
    Column("pairs", 70, lambda one: str(len(one.student_s)), quiet=True),
)


def blur_line(validation: Validation) -> str:
    """That the machine was too noisy for the errors, and what to do."""
    return (
        f"The measured ratios are themselves known to ±{percent(validation.blur)} only (95 %), so these errors are as "
        "much the machine's as the predictions': close other programs, or give each plan more --time-budget."
    )


def validation_lines(validation: Validation) -> list[str]:
    """How often intervals held, what the correction does, and the σ that a plan will use."""
    learnt = validation.correction
    verdict = "used by plans" if learnt.helps else "not used"
    return [
        f"The prediction's 95 % intervals held for {percent(validation.coverage)} of the plans (* where not); "
        f"intervals from the other plans' errors for {percent(validation.calibrated_coverage)}.",
        *([blur_line(validation)] if validation.is_blurred else []),
        f"The tightest budget accepted at confidence 0.95 held for {percent(validation.within_budget)} of the plans.",
        f"Correcting each kind of edit takes the error of a plan left out from {100 * learnt.rms_without:.2f} % to "
        f"{100 * learnt.rms_with:.2f} %: {verdict}.",
        f"asdm-prof plan --validation plans with σ = {100 * validation.sigma:.2f} % of the teacher.",
    ]
