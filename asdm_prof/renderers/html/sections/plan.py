"""The plan: where it comes from, what it leaves of the UNet, and what speaks for each of its edits."""

from __future__ import annotations

from markupsafe import Markup

from asdm.plan.edits import AnyEdit, PruningPlan, ReplaceUnit
from asdm.plan.legality import ResolvedPlan
from asdm_prof.analysis.edits import damage_of, option_of, shares, touched
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import (
    amount_text,
    execution,
    number,
    percent,
    plain,
    plural,
    ratio,
    ratio_interval,
    seconds,
)
from asdm_prof.renderers.html import keys
from asdm_prof.renderers.html.content import Heading, Listing, Paragraph, Section, Span, flat, listed, missing, picture
from asdm_prof.renderers.html.sections.why import why_lines
from asdm_prof.renderers.html.unet_svg import Mark, u_picture

COMMAND = "asdm-prof plan --budget 0.8"


def section(report: Report) -> Section:
    """The UNet after the plan."""
    plan = report.plan
    if plan is None:
        purpose = " finds the best one for a budget of 0.80× from this profile."
        return Section("", [missing("There is no plan yet. ", COMMAND, purpose)])
    lines = [Paragraph([line], medium="terminal") for line in plan_lines(plan, report.profile)]
    resolved, problem = report.resolution
    if resolved is None:
        lead = f"The plan does not fit this UNet: {plain(problem, 400)} "
        return Section("", [missing(lead, COMMAND, " makes one that does."), *lines])
    u, caption = _picture(report, plan, resolved), _caption(report, resolved)
    drawn = picture(u, "The UNet after the plan", caption, keys.fates())
    items = [[Span(plain(str(edit)), "strong"), f" – {_reason(report, edit)}."] for edit in plan.edits]
    nothing = [["The plan has no edits: its student is the teacher."]]
    reasons = Listing(items or nothing, "reasons", ordered=True, medium="page")
    facts = Paragraph([_facts(plan)], "quiet", "page")
    return Section("", [facts, drawn, Heading("Each edit, and why"), reasons, *lines])


def _facts(plan: PruningPlan) -> str:
    """Where the plan comes from: its budget, its measure of damage, the solver's proof."""
    facts = [
        f"Budget {plan.budget}" if plan.budget else "No budget",
        f"damage from {plan.damage_from}" if plan.damage_from else "",
        f"confidence {percent(plan.confidence)}" if plan.confidence else "",
        f"solver: {plan.proof.status}, gap {plan.proof.gap:g}" if plan.proof else "no solver’s proof",
        f"holds for {execution(plan.measured_at)}" if plan.measured_at else "",
    ]
    return plain(", ".join(fact for fact in facts if fact) + ".", 400)


def _picture(report: Report, plan: PruningPlan, resolved: ResolvedPlan) -> Markup:
    profile = report.profile
    why = {part.fqn: plain(f"{edit}: {_reason(report, edit)}", 400)
           for edit in plan.edits for part in touched(profile, edit)}  # fmt: skip
    marks = {fqn: Mark(reason=why.get(fqn, "")) for fqn in resolved.gone}
    parts = {part.fqn: part for part in profile.parts}
    for edit in resolved.replacements:
        part, option = parts.get(edit.unit), option_of(profile, edit)
        size = option.latency_s.median / part.latency_s.median if part and option else 1.0
        marks[edit.unit] = Mark(edit.what, size, why.get(edit.unit, ""))
    title = "The UNet after the plan: what stays, what goes, what is replaced"
    return u_picture("plan-picture", title, report, marks)


def _caption(report: Report, resolved: ResolvedPlan) -> str:
    """How many units stay, go and are replaced, and what time they take."""
    units = {unit.fqn: unit.share.median for unit in report.profile.units}
    gone = [fqn for fqn in resolved.gone if fqn in units]
    fates = [f"{len(units) - len(gone) - len(resolved.replaced)} stay"]
    for what, fqns in (("removed", gone), ("replaced", [*resolved.replaced])):
        if fqns:
            time = percent(sum(units.get(fqn, 0.0) for fqn in fqns))
            fates.append(f"{len(fqns)} {'is' if len(fqns) == 1 else 'are'} {what} ({time} of the time)")
    return f"Of {len(units)} units, {flat(listed(fates))}; a dashed outline is the size before."


def _reason(report: Report, edit: AnyEdit) -> str:
    """The time and the parameters that an edit is about, its rank, its damage, what was timed."""
    profile = report.profile
    parts = touched(profile, edit)
    time, params = shares(profile, edit)
    reason = f"{percent(time)} of the time in {percent(params)} of the parameters"
    places = {row.fqn: row.rank for row in report.ranked}
    ranks = [places[part.fqn] for part in parts if part.fqn in places]
    if ranks:
        reason += f"; redundancy {'rank' if len(ranks) == 1 else 'ranks'} {flat(listed([*map(str, sorted(ranks))]))}"
        reason += f" of {len(report.ranked)}"
    measured = damage_of(report.damage, edit, report.plan.edits if report.plan else ())
    if measured:
        along = " and ".join(str(one) for one in measured.edits if one != edit)
        reason += f"; measured damage {amount_text(measured.damage)}" + (f", together with {along}" if along else "")
    option = option_of(profile, edit) if isinstance(edit, ReplaceUnit) else None
    if option and parts:
        before, after = parts[0].latency_s.median, option.latency_s.median
        reason += f"; timed in place: {seconds(after)} instead of {seconds(before)}"
    return plain(reason, 400)


# ---------------------------------------------------------------------------------------------- in the terminal


def plan_lines(plan: PruningPlan, profile: Profile) -> list[str]:
    """The plan in words: what it promises, each edit with the time it touches, and the solver's proof."""
    lines = [_promise(plan)]
    lines += [f"  {plain(str(edit))}: {_time_of(edit, profile)} of time" for edit in plan.edits]
    if plan.measured_at is not None:
        lines.append(f"It holds for {execution(plan.measured_at)}.")
    if plan.validation_sha256 is not None:
        lines.append(f"Its interval is from the errors of validation {plain(plan.validation_sha256[:12])}.")
    if plan.damage_sha256 is not None:
        lines.append(f"Damage is as measured in {plain(plan.damage_sha256[:12])}.")
    elif plan.damage_from is not None:
        lines.append(f"Damage is from the {plain(plan.damage_from)}.")
    if (proof := plan.proof) is not None:
        bound = f"proven bound {number(proof.bound)}, gap {number(proof.gap)}"
        lines.append(f"Solver: {plain(proof.status)}; damage {number(proof.damage)}, {bound}.")
    if plan.why is not None:
        lines += why_lines(plan.why)
    return lines


def _promise(plan: PruningPlan) -> str:
    at = f" at {plain(plan.budget)}" if plan.budget else ""
    text = f"{plain(plan.name).capitalize()}{at} makes {plural(len(plan.edits), 'edit')}"
    if (predicted := plan.predicted) is None:
        return f"{text}."
    interval = ratio_interval(predicted)
    return f"{text}: predicted {ratio(predicted.ratio)} {interval}, {seconds(predicted.latency_s)} a call."


def _time_of(edit: AnyEdit, profile: Profile) -> str:
    """What an edit is about as a share of the UNet's time, and of a replacement what is left of it."""
    time, _ = shares(profile, edit)
    option = option_of(profile, edit) if isinstance(edit, ReplaceUnit) else None
    return f"{percent(time)} → {percent(option.share.median)}" if option else percent(time)
