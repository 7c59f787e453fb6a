"""Why the plan is so: what binds it, what more of a budget is worth, and what every other choice would cost."""

from __future__ import annotations

from asdm.plan.edits import ShadowPrice, Why
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import amount, exponent, number, plain
from asdm_prof.renderers.html.content import Cell, Column, Paragraph, Section, Table
from asdm_prof.renderers.html.tables import name_cells, table


def section(report: Report) -> Section | None:
    """The reasons that `asdm-prof plan --why` keeps."""
    why = report.plan.why if report.plan and report.resolution[0] else None
    if why is None:
        return None
    binding = f"{' and '.join(why.binding)} binds" if why.binding else "No budget binds"
    sentences = [f"{binding[0].upper()}{binding[1:]}.", *map(_price, why.shadow_prices.items())]
    regrets = _regrets_table(why)
    answer = Paragraph([plain(" ".join(sentences), 600)])
    return Section("Why not otherwise?", [answer, *([regrets] if regrets.rows else [])])


def _price(named: tuple[str, ShadowPrice]) -> str:
    name, price = named
    sentence = f"One {price.per} more of {name} is worth {amount(price.damage)} of damage; {number(price.slack)} "
    sentence += f"{price.per} of the budget is left."
    if price.next_step is not None and price.next_saves is not None:
        sentence += f" {number(price.next_step)} {price.per} more would buy the next plan, which does "
        sentence += f"{amount(price.next_saves)} less damage."
    return sentence


def _regrets_table(why: Why) -> Table:
    """The damage that each unit's other choice would add, the closest calls first."""
    priced = [(regret, regret.damage) for regret in why.regrets if regret.damage is not None]
    priced.sort(key=lambda row: (row[1], row[0].unit))
    stuck = [regret.unit for regret in why.regrets if regret.damage is None]
    caption = "The next best choice of every unit and the damage that it would add, the closest calls first."
    if stuck:
        caption += f" No other choice meets the budget for {', '.join(stuck)}."
    fields = [
        (Column("unit", numeric=False), name_cells(regret.unit for regret, _ in priced)),
        (Column("in the plan", numeric=False), name_cells((regret.choice for regret, _ in priced), 80)),
        (Column("best other", numeric=False), name_cells((str(regret.other) for regret, _ in priced), 80)),
        (Column("added damage"), [Cell(amount(damage), value=damage) for _, damage in priced]),
    ]
    return table("regrets", plain(caption, 600), fields, summary="What the other choices would cost")


# ---------------------------------------------------------------------------------------------- in the terminal

SHOWN_REGRETS = 5


def why_lines(why: Why) -> list[str]:
    """What binds, what a little more of a budget is worth, and the units whose other choice does least and most."""
    lines = ["Why: " + (f"{' and '.join(why.binding)} binds." if why.binding else "no budget binds.")]
    for name, price in why.shadow_prices.items():
        text = f"  {plain(name)}: {exponent(price.damage)} damage per {plain(price.per)}, {number(price.slack)} left"
        if price.next_step is not None and price.next_saves is not None:
            text += f"; {number(price.next_step)} {plain(price.per)} more would save {exponent(price.next_saves)}"
        lines.append(f"{text}.")
    priced = sorted((r for r in why.regrets if r.damage is not None), key=lambda r: (r.damage or 0.0, r.unit))
    shown = priced if len(priced) <= 2 * SHOWN_REGRETS else [*priced[:SHOWN_REGRETS], *priced[-SHOWN_REGRETS:]]
    for place, regret in enumerate(shown):
        if place == SHOWN_REGRETS and len(priced) > len(shown):
            lines.append(f"  … {len(priced) - len(shown)} units between")
        cost = f"{exponent(regret.damage)} more" if regret.damage else "no more"
        lines.append(f"  {plain(regret.unit)}: {plain(regret.choice)}; {plain(str(regret.other))} does {cost} damage.")
    if stuck := [plain(r.unit) for r in why.regrets if r.damage is None]:
        lines.append(f"  No other choice meets the budget for {', '.join(stuck)}.")
    return lines
