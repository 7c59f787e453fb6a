"""Other runtimes and settings: whether units rank alike, and what each plan would save under each profile."""

from __future__ import annotations

from asdm_prof.records import ComparedPlan, Comparison
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, ratio
from asdm_prof.renderers.html.content import NONE, Block, Cell, Column, Paragraph, Section, Table, missing
from asdm_prof.renderers.html.tables import name_cells, table

GAIN_NOTE = "UNet latency, student / teacher, as each column's profile predicts it; * is above the plan's budget."


def section(report: Report) -> Section:
    """Rank transfer between profiles."""
    title, comparison = "Does it hold in another runtime or setting?", report.comparison
    if comparison is None:
        command = "asdm-prof compare A B --budget 0.8"
        purpose = " says whether two profiles, such as fp32’s and bf16’s, rank units alike."
        return Section(title, [missing("This profile has not been compared with another. ", command, purpose)])
    blocks: list[Block] = [Paragraph([answer(comparison)]), ranks_table(comparison)]
    return Section(title, [*blocks, *([plans_table(comparison)] if comparison.plans else [])])


def of_record(comparison: Comparison) -> list[Section]:
    """What `asdm-prof compare` prints: the rank matrix, and each plan's price by every profile."""
    sections = [
        Section("", [Paragraph([answer(comparison)], "lead")]),
        Section("Do units rank alike? (Spearman)", [ranks_table(comparison)]),
    ]
    if comparison.plans:
        note = Paragraph([GAIN_NOTE], "quiet")
        sections.append(Section("What would each plan buy?", [plans_table(comparison), note]))
    return sections


def answer(comparison: Comparison) -> str:
    """Which two of the profiles rank units least alike, and how well that can be told."""
    names = [profile.name for profile in comparison.profiles]
    least, i, j = min((comparison.spearman[i][j], i, j) for j in range(len(names)) for i in range(j))
    own = min(profile.split_half for profile in comparison.profiles)
    backends = dict.fromkeys(profile.measured_at.backend for profile in comparison.profiles)
    pair = f"{names[i]} and {names[j]} rank the units of {comparison.family}"
    sentence = f"{pair} with" if len(names) == 2 else f"Of {len(names)} profiles, {pair} least alike:"
    return plain(
        f"{sentence} Spearman {least:.3f}. A profile’s own odd and even runs agree in {own:.3f} or more; no other "
        f"profile can agree better. What is told here holds for {', '.join(backends)}.",
        400,
    )


def ranks_table(comparison: Comparison) -> Table:
    """Rank correlation of the units, profile by profile; beside it each profile's own odd and even runs."""
    names = [plain(profile.name, 40) for profile in comparison.profiles]
    fields = [(Column("profile", numeric=False, terminal_from=0, short="", wraps=True), name_cells(names))]
    halves = [profile.split_half for profile in comparison.profiles]
    for name, values in zip([*names, "own halves"], [*zip(*comparison.spearman, strict=True), halves], strict=True):
        cells = [Cell(f"{value:.3f}", value=value) for value in values]
        fields.append((Column(name, terminal_from=0, wraps=True), cells))
    return table("spearman", "Rank correlation of the units’ redundancy, profile by profile.", fields)


def plans_table(comparison: Comparison) -> Table:
    """Every plan's predicted ratio under every profile."""
    plans = comparison.plans
    plan_column = Column("plan", numeric=False, terminal_from=0, short="", wraps=True)
    fields = [(plan_column, name_cells((plan.name for plan in plans), 60))]
    for place, profile in enumerate(comparison.profiles):
        name = plain(profile.name, 40)
        column = Column(name, "student / teacher", terminal_from=0, short=name, wraps=True)
        fields.append((column, [_gain(plan, place) for plan in plans]))
    return table("transfer", "What each plan would take under each profile; * is above its budget.", fields)


def _gain(plan: ComparedPlan, place: int) -> Cell:
    predicted = plan.predicted[place]
    if predicted is None:
        return Cell(NONE.text, short="not timed")
    over = "*" if plan.budget_ratio is not None and predicted.ratio > plan.budget_ratio else ""
    bounds = f"[{predicted.low:.2f}, {predicted.high:.2f}]"
    return Cell(f"{ratio(predicted.ratio)}{over}", bounds, predicted.ratio, predicted.low, predicted.high)
