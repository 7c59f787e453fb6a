"""The first screen: one sentence, and four figures with links to where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.utils import sizes
from asdm_prof.analysis.tree import shallow_blocks, shallow_params, shallow_share
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import percent, plain, plural, ratio, ratio_interval, seconds, seconds_interval
from asdm_prof.renderers.html.content import Card, Cards, Paragraph, Section, bounds, code, figure, listed


def section(report: Report) -> Section:
    """What a call takes, what the plan does about it, and whether to believe it."""
    lead = time_sentence(report.profile)
    plan = [" ", *plan_sentence(report)]
    cards = [_latency_card(report), _shallow_card(report), _plan_card(report), _trust_card(report)]
    on_page = Paragraph([*lead, *plan], "lead", "page")
    in_terminal = Paragraph([*lead, *(plan if report.plan else [])], "lead", "terminal")
    return Section("", [on_page, in_terminal, Paragraph([conditions(report.profile)], "quiet"), Cards(cards)])


def time_sentence(profile: Profile) -> list[str]:
    """How long the UNet takes, and how much of that its shallow blocks take."""
    latency = profile.whole.latency_s
    return [
        f"{plain(profile.title)}’s UNet takes ",
        figure(seconds(latency.median)),
        " ",
        bounds(seconds_interval(latency)),
        " a call on this machine; ",
        figure(percent(shallow_share(profile).median)),
        " of it is in ",
        *listed([[code(plain(block))] for block in shallow_blocks(profile)]),
        ", which hold ",
        figure(percent(shallow_params(profile))),
        " of the parameters.",
    ]


def conditions(profile: Profile) -> str:
    """What the profile was taken on, and with which settings."""
    run = f"{profile.backend}, {profile.dtype} on {profile.device}, {plural(profile.threads, 'thread')}"
    shape = f"batch {profile.batch}, {sizes.shown(profile.size)} px, {profile.weights} weights"
    machine = profile.environment.get("gpu") or profile.environment.get("cpu", "unknown processor")
    return plain(f"{machine}: {run}, {shape}.")


def plan_sentence(report: Report) -> list[str]:
    """What the plan does, what was predicted of it, and what was measured."""
    if report.plan is None:
        return ["No plan has been made from it yet."]
    prediction, student = prediction_of(report), report.own_student
    clauses: list[list[str]] = [["predicted ", figure(ratio(prediction[0]))]] if prediction else []
    if student:
        measured = student.predicted_latency_ratio
        clauses.append(["measured ", figure(ratio(measured.median)), " ", bounds(ratio_interval(measured))])
    else:
        clauses.append(["not measured yet"])
    results = [piece for place, clause in enumerate(clauses) for piece in ([", "] if place else []) + clause]
    return [f"The {_plan_name(report.plan)} ", *_effects(report.plan), ": ", *results, "."]


def prediction_of(report: Report) -> tuple[float, str] | None:
    """The predicted ratio and its interval as text: the plan's own, else the one that its student was benched with."""
    if report.plan and report.plan.predicted:
        predicted = report.plan.predicted
        return predicted.ratio, ratio_interval(predicted)
    student = report.own_student
    if student is None or student.predicted_ratio is None:
        return None
    low, high = student.predicted_low, student.predicted_high
    return student.predicted_ratio, "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def _plan_name(plan: PruningPlan) -> str:
    if plan.budget_ratio is not None:
        return f"plan at {ratio(plan.budget_ratio)}"
    return plain(f"plan at {plan.budget}" if plan.budget else f"plan “{plan.name}”", 60)


def _effects(plan: PruningPlan) -> Iterator[str]:
    """What a plan does, such as “removes 2 layers and replaces 3 units with gri_attention”."""
    ops = Counter[str](edit.op for edit in plan.edits)
    removed = [plural(ops[f"remove_{what}"], what) for what in ("block", "layer", "unit") if ops[f"remove_{what}"]]
    names = Counter(edit.with_ for edit in plan.edits if isinstance(edit, ReplaceUnit))
    replaced = [[f"{plural(n, 'unit')} with ", code(plain(name))] for name, n in sorted(names.items())]
    clauses = [["removes ", *listed(removed)]] if removed else []
    clauses += [["replaces ", *listed(replaced)]] if replaced else []
    yield from listed(clauses) if clauses else ["changes nothing"]


def _latency_card(report: Report) -> Card:
    latency = report.profile.whole.latency_s
    runs = f"UNet call, median of {plural(len(latency.samples), 'run')}"
    return Card("Latency", seconds(latency.median), seconds_interval(latency), runs, "time")


def _shallow_card(report: Report) -> Card:
    share = shallow_share(report.profile)
    note = f"of the time, in {percent(shallow_params(report.profile))} of the parameters"
    interval = f"[{100 * share.low:.1f}, {100 * share.high:.1f}] %"
    return Card("Shallow blocks", percent(share.median), interval, note, "redundancy")


def _plan_card(report: Report) -> Card:
    """The plan's ratio: measured, else predicted, else the command that makes a plan."""
    if report.plan is None:
        return Card("Plan", "none yet", "", "asdm-prof plan --budget 0.8 makes one", "plan")
    prediction, student = prediction_of(report), report.own_student
    if student:
        measured = student.predicted_latency_ratio
        note = "of the teacher’s latency, measured" + (f"; predicted {ratio(prediction[0])}" if prediction else "")
        return Card("Plan", ratio(measured.median), ratio_interval(measured), note, "plan")
    if prediction:
        note = "of the teacher’s latency, predicted; not measured yet"
        return Card("Plan", ratio(prediction[0]), prediction[1], note, "plan")
    return Card("Plan", plural(len(report.plan.edits), "edit"), "", "not predicted and not measured yet", "plan")


def _trust_card(report: Report) -> Card:
    trust = report.profile.trust
    failed = [line.check for line in trust if not line.passed]
    note = plain(f"failed: {', '.join(failed)}", 90) if failed else "every check of the profile"
    return Card("Trust", f"passed {len(trust) - len(failed)} of {len(trust)}", "", note, "trust")
