"""One offline page that answers five questions: what is the answer, where does the time go, what is redundant, what
would a plan buy, and can this be believed.

Every sentence and figure is a function of the report's records. Names from files are escaped wherever they stand.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from asdm.plan.legality import ResolvedPlan, resolve
from asdm.records.bench import BenchResult, BenchStudent
from asdm.utils.io import write_whole
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, plural
from asdm_prof.renderers.html import outcomes, words
from asdm_prof.renderers.html.svg import (
    Predicted,
    block_bars,
    block_sums,
    family_bars,
    prediction_scatter,
    redundancy_dots,
)
from asdm_prof.renderers.html.tables import (
    Cell,
    Column,
    Table,
    bench_table,
    block_table,
    cost_table,
    tree_table,
    unit_table,
)
from asdm_prof.renderers.html.unet_svg import Mark, icicle, u_picture
from asdm_prof.renderers.html.view import View, option_of, touched

OUTPUT = "report.html"
HERE = Path(__file__).parent


def render(report: Report, folder: Path) -> list[Path]:
    """Write `report.html`: one file that needs no network and no JavaScript to be read."""
    return [write_whole(folder / "report.html", page(report), force=True)]


def page(report: Report) -> str:
    """The whole page as text; the same report gives the same page."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (HERE / "report.js").read_text(encoding="utf-8")
    view = View(report)
    environment.filters["tied"] = words.tied
    return environment.get_template("report.html.j2").render(
        title=plain(f"{report.profile.title}: where the UNet’s time goes, and what can go"),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        island=_island(view.nodes),
        answer=_answer(view),
        time=_time(view),
        redundancy=_redundancy(view),
        plan=_plan(view),
        trust=_trust(view),
    )


def _island(nodes: list[dict[str, Any]]) -> Markup:
    """JSON for the script, in which nothing can end its element."""
    text = json.dumps({"nodes": nodes}, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _answer(view: View) -> dict[str, Any]:
    profile = view.profile
    run = f"{profile.backend}, {profile.dtype} on {profile.device}, {plural(profile.threads, 'thread')}"
    shape = f"batch {profile.batch}, {profile.size} px, {profile.weights} weights"
    return {
        "sentence": Markup("{} {}").format(words.time_sentence(view), words.plan_sentence(view)),
        "conditions": plain(f"{profile.environment.get('cpu', 'unknown processor')}: {run}, {shape}."),
        "cards": [
            words.latency_card(view),
            words.shallow_card(view),
            words.plan_card(view),
            words.trust_card(view),
        ],
    }


def _time(view: View) -> dict[str, Any]:
    profile, costs = view.profile, view.report.family_costs
    title = f"The {plain(profile.title)} UNet as a U; the area of a square is its time"
    sums = {measure: block_sums(profile, measure) for measure in ("time", "params")}
    return {
        "icicle": icicle(view.root, view.index, view.told),
        "icicle_captions": words.icicle_captions(view),
        "tree": tree_table(view.root),
        "u": u_picture("u-picture", title, profile, view.root, view.index, view.told),
        "u_caption": words.u_caption(view),
        "roofline": outcomes.roofline(view),
        "blocks": block_bars(profile, view.labels),
        "blocks_caption": words.blocks_caption(view, sums),
        "blocks_table": block_table(sums, profile.topology.blocks),
        "families": family_bars(costs) if costs else None,
        "families_caption": words.families_caption(costs) if costs else "",
        "families_table": cost_table(costs) if costs else None,
        "beside": outcomes.beside(view),
        "family": plain(profile.family),
    }


def _redundancy(view: View) -> dict[str, Any]:
    return {
        "dots": redundancy_dots(view.ranked),
        "caption": words.dots_caption(view.ranked),
        "table": unit_table(view.profile, view.ranked, view.damages),
        "damage": outcomes.damage(view),
        "family": plain(view.profile.family),
    }


def _plan(view: View) -> dict[str, Any]:
    students = [student for student in view.students if student.predicted_ratio is not None]
    drawn = max(sum(bool(bench.drawings) for bench in view.report.benches), 1)
    kept, problem = _kept(view)
    return {
        "made": view.plan is not None,
        "problem": problem,
        "facts": words.plan_facts(view),
        "picture": _plan_picture(view, kept) if kept else None,
        "picture_caption": words.picture_caption(view, kept) if kept else "",
        "reasons": [words.reason_for(view, edit) for edit in view.plan.edits] if view.plan and kept else [],
        "scatter": prediction_scatter("prediction", [_predicted(view, s) for s in students]) if students else None,
        "scatter_caption": words.scatter_caption(students) if students else "",
        "validation": outcomes.validation(view),
        "frontier": outcomes.frontier(view),
        "why": outcomes.why(view),
        "budgets": outcomes.budgets(view),
        "benches": [_bench(bench, i, drawn) for i, bench in enumerate(view.report.benches, 1)],
        "training": outcomes.training(view),
        "proof": outcomes.proof(view),
        "search": outcomes.search(view),
        "family": plain(view.profile.family),
    }


def _predicted(view: View, student: BenchStudent) -> Predicted:
    low, high, told = student.predicted_low, student.predicted_high, student.predicted_ratio or 0.0
    bounds = None if low is None or high is None else (low, high)
    return Predicted(student.name, told, bounds, student.unet_latency_ratio, view.is_own(student))


def _bench(bench: BenchResult, place: int, with_pictures: int) -> dict[str, Any]:
    quality = outcomes.quality(bench, place)
    return {
        "table": bench_table(bench, place),
        "quality": quality,
        "quality_caption": outcomes.quality_caption(bench) if quality else "",
        "pictures": outcomes.pictures(bench, outcomes.PICTURE_BYTES / with_pictures),
    }


def _kept(view: View) -> tuple[ResolvedPlan | None, str]:
    """What the plan leaves, or why it does not fit this UNet."""
    if view.plan is None:
        return None, ""
    try:
        return resolve(view.profile.topology, view.plan.edits), ""
    except ValueError as error:
        return None, plain(str(error), 400)


def _plan_picture(view: View, kept: ResolvedPlan) -> Markup:
    why = _reasons(view)
    marks = {fqn: Mark(reason=why.get(fqn, "")) for fqn in kept.gone}
    for fqn, name in kept.replaced.items():
        part, option = view.part(fqn), option_of(view.profile, fqn, name)
        size = option.latency_s.median / part.latency_s.median if part and option else 1.0
        marks[fqn] = Mark(name, size, why.get(fqn, ""))
    title = "The UNet after the plan: what stays, what goes, what is replaced"
    return u_picture("plan-picture", title, view.profile, view.root, view.index, view.told, marks)


def _reasons(view: View) -> dict[str, str]:
    """What becomes of each part that the plan is about, and why."""
    edits = view.plan.edits if view.plan else ()
    return {
        part.fqn: plain(f"{edit}: {words.reason_text(view, edit)}", 400)
        for edit in edits
        for part in touched(view.profile, edit)
    }


def _trust(view: View) -> dict[str, Any]:
    profile = view.profile
    return {
        "lines": profile.trust,
        "comparison": outcomes.comparison(view),
        "family": plain(profile.family),
        "chain": list(_chain(view)),
        "environment": _environment(profile),
        "commands": list(_commands(view)),
        "sources": [(plain(what), plain(file)) for what, file in view.report.sources.items()],
        "uncounted": [f"{plain(name)} ({n}×)" for name, n in profile.whole.uncounted_ops.items()],
    }


def _chain(view: View) -> Iterator[tuple[str, str, str]]:
    """(what, hash, does it fit the file before it) from the config to the benches."""
    profile, plan = view.profile, view.plan
    yield "teacher’s config", profile.config_sha256, ""
    yield "profile", profile.sha256(), ""
    if plan:
        fits = {None: "names no profile", profile.sha256(): "made from this profile"}
        yield "plan", plan.sha256(), fits.get(plan.profile_sha256, "made from another profile")
    for i, bench in enumerate(view.report.benches, 1):
        same = bench.teacher_config_sha256 == profile.config_sha256
        own = ", holds this plan’s student" if any(view.is_own(student) for student in bench.students) else ""
        yield f"bench {i}", bench.sha256(), ("the same teacher" if same else "another teacher") + own


def _environment(profile: Profile) -> Table:
    run = {
        "measured": profile.created_utc,
        "backend": profile.backend,
        "dtype": profile.dtype,
        "device": profile.device,
        "threads": profile.threads,
        "seed": profile.seed,
        "batch": profile.batch,
        "size": f"{profile.size} px, latent {profile.latent} × {profile.latent}",
        "weights": profile.weights,
    }
    rows = [[Cell(plain(str(k))), Cell(plain(str(v)))] for k, v in (run | dict(profile.environment)).items()]
    columns = [Column("what", numeric=False), Column("value", numeric=False)]
    return Table("environment", "What this was measured with.", columns, rows)


def _commands(view: View) -> Iterator[str]:
    yield plain(view.profile.command, 400)
    if view.plan and view.plan.budget:
        yield plain(f"asdm-prof plan --budget {view.plan.budget}", 400)
    for bench in view.report.benches:
        yield plain(bench.command, 400)
