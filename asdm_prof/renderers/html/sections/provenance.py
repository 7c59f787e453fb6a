"""Where a report comes from: the commands behind it, the chain of hashes, and what was measured with which settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from asdm.utils import sizes
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, quoted
from asdm_prof.renderers.html.content import Column, Commands, Definitions, Section, Sentence, Span, code
from asdm_prof.renderers.html.tables import name_cells, table


def commands(report: Report) -> Section:
    """What to type to make the same."""
    lines = [report.profile.command]
    if report.plan and report.plan.budget:
        lines.append(f"asdm-prof plan --budget {quoted(report.plan.budget)}")
    lines += [bench.command for bench in report.benches]
    return Section("How to reproduce", [Commands([plain(_to_copy(line), 400) for line in lines])])


def _to_copy(command: str) -> str:
    """A recorded command line of ours, whose words do nothing else in a shell."""
    if not command.startswith(("asdm ", "asdm-prof ")):
        return command  # a call in Python
    try:
        return shlex.join(shlex.split(command))
    except ValueError:  # a quotation that does not end
        return shlex.quote(command)


def sources(report: Report) -> Section:
    """Which file was made from which."""
    rows: list[tuple[str, Sentence]] = [
        (what, [code(sha256), *([" ", Span(fits, "quiet")] if fits else [])]) for what, sha256, fits in _chain(report)
    ]
    rows += [(plain(f"{what}, read from"), [code(plain(file))]) for what, file in report.sources.items()]
    return Section("Provenance", [Definitions(rows)])


def _chain(report: Report) -> Iterator[tuple[str, str, str]]:
    """(what, hash, does it fit the file before it) from the config to the benches."""
    profile, plan = report.profile, report.plan
    yield "teacher’s config", profile.config_sha256, ""
    yield "profile", profile.sha256(), ""
    if plan:
        fits = {None: "names no profile", profile.sha256(): "made from this profile"}
        yield "plan", plan.sha256(), fits.get(plan.profile_sha256, "made from another profile")
    for i, bench in enumerate(report.benches, 1):
        same = bench.teacher_config_sha256 == profile.config_sha256
        own = ", holds this plan’s student" if any(map(report.is_own, bench.students)) else ""
        yield f"bench {i}", bench.sha256(), ("the same teacher" if same else "another teacher") + own


def environment(report: Report) -> Section:
    """Settings first, then the environment as it was recorded."""
    profile = report.profile
    width, height = sizes.sides(profile.latent)
    size = f"{sizes.shown(profile.size)} px, latent {width} × {height}"
    names = ("backend", "dtype", "device", "threads", "seed", "batch")
    settings = {"measured": profile.created_utc} | {name: getattr(profile, name) for name in names}
    rows = settings | {"size": size, "weights": profile.weights} | dict(profile.environment)
    fields = [
        (Column("what", numeric=False), name_cells(map(str, rows))),
        (Column("value", numeric=False), name_cells(map(str, rows.values()))),
    ]
    return Section("Environment", [table("environment", "What this was measured with.", fields)])
