"""The sentences, captions and cards of the HTML report: every figure in them is computed from the records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from markupsafe import Markup, escape

from asdm.plan.edits import AnyEdit, PruningPlan, ReplaceUnit
from asdm.plan.legality import ResolvedPlan
from asdm.records.bench import BenchStudent
from asdm_prof.analysis.rank import Ranked
from asdm_prof.analysis.tree import Node, shallow_blocks, shallow_params, shallow_share
from asdm_prof.renderers import FamilyCost
from asdm_prof.renderers._format import (
    amount_text,
    number,
    percent,
    plain,
    plural,
    ratio,
    ratio_interval,
    seconds,
    seconds_interval,
)
from asdm_prof.renderers.html.svg import BAND, KINDS, by_family
from asdm_prof.renderers.html.view import (
    View,
    damage_of,
    edits_share,
    option_of,
    prediction_of,
    share_of,
    touched,
)


@dataclass(frozen=True)
class Card:
    """One of the four figures of the first screen."""

    name: str
    figure: str
    quiet: str
    note: str
    link: str


def _figure(text: str) -> Markup:
    """A figure in a sentence, which does not break over a line."""
    return Markup('<b class="figure">{}</b>').format(text)


def _bounds(text: str) -> Markup:
    return Markup(' <span class="quiet figure">{}</span>').format(text)


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(plain(text))


def _and(items: Sequence[Any]) -> Markup:
    """Items as one phrase, such as “a, b and c”; escaped."""
    head, last = items[:-1], items[-1:]
    joined = Markup(", ").join(map(escape, head))
    return Markup("{} and {}").format(joined, last[0]) if head else Markup("").join(map(escape, last))


def tied(text: str) -> str:
    """The same text, in which a number and its unit stay on one line."""
    return type(text)(re.sub(r"(\d) (?=(?:%|ms|s|µs|[kMGT]|[kMGT]?MAC|MB|GB)(?!\w))", "\\1\u00a0", text))


def time_sentence(view: View) -> Markup:
    """How long the UNet takes, and how much of that its shallow blocks take."""
    profile, latency = view.profile, view.profile.whole.latency_s
    return Markup(
        "{}’s UNet takes {}{} a call on this machine; {} of it is in {}, which hold {} of the parameters."
    ).format(
        plain(profile.title),
        _figure(seconds(latency.median)),
        _bounds(seconds_interval(latency)),
        _figure(percent(shallow_share(profile).median)),
        _and([_code(block) for block in shallow_blocks(profile)]),
        _figure(percent(shallow_params(profile))),
    )


def plan_sentence(view: View) -> Markup:
    """What the plan does, what was predicted of it, and what was measured."""
    if view.plan is None:
        return Markup("No plan was made from it yet.")
    told = prediction_of(view)
    found = [Markup("predicted {}").format(_figure(ratio(told[0])))] if told else []
    if view.own:
        measured = view.own.unet_latency_ratio
        found.append(Markup("measured {}{}").format(_figure(ratio(measured.median)), _bounds(ratio_interval(measured))))
    else:
        found.append(Markup("not measured yet"))
    return Markup("The {} {}: {}.").format(_plan_name(view.plan), _what_goes(view.plan), Markup(", ").join(found))


def _plan_name(plan: PruningPlan) -> str:
    if plan.budget_ratio is not None:
        return f"plan at {ratio(plan.budget_ratio)}"
    return plain(f"plan at {plan.budget}" if plan.budget else f"plan “{plan.name}”", 60)


def _what_goes(plan: PruningPlan) -> Markup:
    """What a plan does, such as “removes 2 layers and replaces 3 units with gri_attention”."""
    ops = Counter[str](edit.op for edit in plan.edits)
    gone = [plural(ops[f"remove_{what}"], what) for what in ("block", "layer", "unit") if ops[f"remove_{what}"]]
    new = Counter(edit.with_ for edit in plan.edits if isinstance(edit, ReplaceUnit))
    swapped = [Markup("{} with {}").format(plural(n, "unit"), _code(name)) for name, n in sorted(new.items())]
    clauses = [Markup("removes {}").format(_and(gone))] if gone else []
    clauses += [Markup("replaces {}").format(_and(swapped))] if swapped else []
    return _and(clauses) if clauses else Markup("changes nothing")


def latency_card(view: View) -> Card:
    """The UNet's latency."""
    latency = view.profile.whole.latency_s
    runs = f"UNet call, median of {plural(len(latency.samples), 'run')}"
    return Card("Latency", seconds(latency.median), seconds_interval(latency), runs, "time")


def shallow_card(view: View) -> Card:
    """The shallow blocks' share of the time."""
    share = shallow_share(view.profile)
    note = f"of the time, in {percent(shallow_params(view.profile))} of the parameters"
    bounds = f"[{100 * share.low:.1f}, {100 * share.high:.1f}] %"
    return Card("Shallow blocks", percent(share.median), bounds, note, "redundancy")


def plan_card(view: View) -> Card:
    """The plan's ratio: measured, else predicted, else the command that makes a plan."""
    if view.plan is None:
        return Card("Plan", "none yet", "", "asdm-prof plan --budget 0.8 makes one", "plan")
    told = prediction_of(view)
    if view.own:
        measured = view.own.unet_latency_ratio
        note = "of the teacher’s latency, measured" + (f"; predicted {ratio(told[0])}" if told else "")
        return Card("Plan", ratio(measured.median), ratio_interval(measured), note, "plan")
    if told:
        return Card("Plan", ratio(told[0]), told[1], "of the teacher’s latency, predicted; not measured yet", "plan")
    return Card("Plan", plural(len(view.plan.edits), "edit"), "", "not predicted and not measured yet", "plan")


def trust_card(view: View) -> Card:
    """How many checks passed, and which did not."""
    trust = view.profile.trust
    failed = [line.check for line in trust if not line.passed]
    note = plain(f"failed: {', '.join(failed)}", 90) if failed else "every check of the profile"
    return Card("Trust", f"passed {len(trust) - len(failed)} of {len(trust)}", "", note, "trust")


def icicle_captions(view: View) -> list[str]:
    """One sentence for each measure of the switch, in its order: time, MACs, parameters, memory."""
    root = view.root
    blocks = [child for child in root.children if child.level == "block"]
    captions = []
    for what, measure in (("time", "latency_s"), ("MACs", "macs"), ("parameters", "params")):
        value = attrgetter(measure)
        widest = max(blocks, key=value)
        kinds = {KINDS[kind]: Node("", "", "", parts=[p for p in root.parts if p.kind == kind]) for kind in KINDS}
        shares = ", ".join(f"{name} {share_of(value(node), value(root))}" for name, node in kinds.items())
        share = share_of(value(widest), value(root))
        captions.append(f"Width is {what}. The widest block is {widest.name} with {share}; by kind: {shares}.")
    peak = max(root.parts, key=lambda part: part.peak_memory_bytes)
    size = f"{number(peak.peak_memory_bytes / 1e6)} MB"
    captions.append(f"Width is each part’s own peak of activations; peaks do not add up. Highest: {peak.fqn}, {size}.")
    return [plain(caption, 400) for caption in captions]


def u_caption(view: View) -> str:
    """The largest square against the smallest."""
    units = sorted(view.profile.units, key=lambda unit: -unit.latency_s.median)
    first, last = units[0], units[-1]
    times = first.latency_s.median / last.latency_s.median
    top = f"{first.fqn} is the largest unit with {percent(first.share.median)}, {number(times, 2)} times {last.fqn}"
    return plain(f"A square’s area is its time, a line across is a skip. {top}.", 400)


def blocks_caption(view: View, sums: dict[str, dict[tuple[str, str], float]]) -> str:
    """The block with the most time for its size, and the one with the least."""
    blocks = view.profile.topology.blocks
    shares = {}
    for measure, values in sums.items():
        whole = sum(values.values())
        shares[measure] = {b: sum(v for (block, _), v in values.items() if block == b) / whole for b in blocks}
    gap = {block: shares["time"][block] - shares["params"][block] for block in blocks}
    slow, big = max(gap, key=lambda b: gap[b]), min(gap, key=lambda b: gap[b])
    return plain(
        f"Time is up, size is down. Of what the units take and hold, {slow} has {percent(shares['time'][slow])} of the "
        f"time and {percent(shares['params'][slow])} of the parameters, {big} {percent(shares['time'][big])} and "
        f"{percent(shares['params'][big])}.",
        400,
    )


def families_caption(costs: Sequence[FamilyCost]) -> str:
    """The UNet's share of a whole model."""
    sizes, macs = [], []
    for rows in by_family(costs):
        own = [cost for cost in rows if cost.component == "unet"]
        sizes.append(sum(c.params for c in own) / sum(c.params for c in rows))
        macs.append(sum(c.macs * c.calls for c in own) / sum(c.macs * c.calls for c in rows))
    return f"The UNet holds {_span(sizes)} of the parameters and does {_span(macs)} of the multiply-adds of an image."


def _span(shares: Sequence[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def dots_caption(ranked: Sequence[Ranked]) -> str:
    """How many units are redundant, which stand first, and how many groups can be told apart."""
    over = sum(row.redundancy.median > 1 for row in ranked)
    first = [row for row in ranked if row.tie_group == 1]
    names = ", ".join(row.label for row in first[:6]) + (", …" if len(first) > 6 else "")
    return plain(
        f"{over} of {len(ranked)} units take more time than their size suggests (above 1×). Most of all: {names}, at "
        f"{number(first[0].redundancy.median)}×. Brackets join the units that this run cannot tell apart: "
        f"{plural(ranked[-1].tie_group, 'group')}.",
        400,
    )


def plan_facts(view: View) -> str:
    """Where the plan comes from: its budget, its measure of damage, the solver's proof."""
    if view.plan is None:
        return ""
    plan = view.plan
    facts = [
        f"Budget {plan.budget}" if plan.budget else "No budget",
        f"damage from {plan.damage_from}" if plan.damage_from else "",
    ]
    facts.append(f"confidence {percent(plan.confidence)}" if plan.confidence else "")
    facts.append(f"solver: {plan.proof.status}, gap {plan.proof.gap:g}" if plan.proof else "no solver’s proof")
    return plain(", ".join(fact for fact in facts if fact) + ".", 400)


def picture_caption(view: View, kept: ResolvedPlan) -> str:
    """How many units stay, go and are replaced, and what time they take."""
    units = {unit.fqn for unit in view.profile.units}
    gone = [fqn for fqn in kept.gone if fqn in units]
    share = sum(unit.share.median for unit in view.profile.units if unit.fqn in gone)
    changed = sum(unit.share.median for unit in view.profile.units if unit.fqn in kept.replaced)
    fates = [f"{len(units) - len(gone) - len(kept.replaced)} stay"]
    fates += [f"{len(gone)} go ({percent(share)} of the time)"] if gone else []
    fates += [f"{len(kept.replaced)} are replaced ({percent(changed)} of the time)"] if kept.replaced else []
    return f"Of {len(units)} units {_and(fates)}; a dashed outline is the size before."


def reason_for(view: View, edit: AnyEdit) -> Markup:
    """An edit and what speaks for it."""
    return Markup("<b>{}</b> – {}.").format(plain(str(edit)), reason_text(view, edit))


def reason_text(view: View, edit: AnyEdit) -> str:
    """The time and the parameters that an edit is about, its rank, its damage, what was timed."""
    parts = touched(view.profile, edit)
    share, params = edits_share(view, edit)
    reason = f"{percent(share)} of the time in {percent(params)} of the parameters"
    ranks = [view.by_fqn[part.fqn].rank for part in parts if part.fqn in view.by_fqn]
    if ranks:
        reason += f"; redundancy {'rank' if len(ranks) == 1 else 'ranks'} {_and(sorted(ranks))} of {len(view.ranked)}"
    measured = damage_of(view, edit)
    if measured:
        along = " and ".join(str(one) for one in measured.edits if one != edit)
        reason += f"; measured damage {amount_text(measured.damage)}" + (f", together with {along}" if along else "")
    option = option_of(view.profile, edit.unit, edit.with_) if isinstance(edit, ReplaceUnit) else None
    if option and parts:
        before, after = parts[0].latency_s.median, option.latency_s.median
        reason += f"; timed in place: {seconds(after)} instead of {seconds(before)}"
    return plain(reason, 400)


def scatter_caption(students: Sequence[BenchStudent]) -> str:
    """How many predictions held, and the one that missed most."""
    misses = [(student.unet_latency_ratio.median - (student.predicted_ratio or 0.0), student) for student in students]
    close = sum(abs(miss) <= BAND for miss, _ in misses)
    miss, worst = max(misses, key=lambda row: abs(row[0]))
    side = "slower" if miss > 0 else "faster"
    return plain(
        f"Within {ratio(BAND)} of the line on which prediction and measurement agree (the band): {close} of "
        f"{plural(len(students), 'student')}. Largest miss: {worst.name}, {ratio(abs(miss))} {side} than predicted.",
        400,
    )
