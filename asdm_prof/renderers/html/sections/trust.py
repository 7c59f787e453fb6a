"""The trust box: what was checked, the figure, passed or not, and what to do."""

from __future__ import annotations

from asdm_prof.records import Profile, TrustLine
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, plural
from asdm_prof.renderers.html.content import Block, Cell, Column, Listing, Paragraph, Section, Span, Table
from asdm_prof.renderers.html.tables import table


def section(report: Report) -> Section:
    """Every check of the profile."""
    profile = report.profile
    items = [_item(line) for line in profile.trust] or [["No check was recorded with this profile."]]
    styles = ["passed" if line.passed else "failed" for line in profile.trust]
    blocks: list[Block] = [Listing(items, "trust", styles=styles, medium="page"), _table(profile)]
    uncounted = ", ".join(f"{plain(name)} ({n}×)" for name, n in profile.whole.uncounted_ops.items())
    if uncounted:
        blocks.append(Paragraph([f"Not counted in the MACs: {uncounted}."]))
    origin = f"Made by `{plain(profile.command)}` at {plain(profile.created_utc)}; profile {profile.sha256()[:12]}."
    passed = sum(line.passed for line in profile.trust)
    title = f"{passed} of {plural(len(profile.trust), 'check')} passed."
    return Section(title, [*blocks, Paragraph([origin], "quiet", "terminal")])


def _item(line: TrustLine) -> list[str]:
    verdict = Span("✓ passed" if line.passed else "✗ failed", "verdict")
    item = [verdict, " ", Span(plain(line.check), ""), " ", Span(plain(line.value), "quiet")]
    if line.remedy and not line.passed:
        item += [" ", Span(f"What to do: {plain(line.remedy)}", "remedy")]
    return item


def _table(profile: Profile) -> Table:
    """One line per check, for the terminal."""
    lines = profile.trust
    values = [f"{line.value}: {line.remedy}" if line.remedy and not line.passed else line.value for line in lines]
    verdicts = [Cell("passed") if line.passed else Cell("FAILED", kind="failed") for line in lines]
    fields = [
        (Column("", numeric=False, terminal_from=0), verdicts),
        (Column("", numeric=False, terminal_from=0, wraps=True), [Cell(plain(line.check)) for line in lines]),
        (Column("", numeric=False, terminal_from=0, wraps=True), [Cell(plain(value)) for value in values]),
    ]
    return table("trust", "Checks of the profile.", fields, medium="terminal")
