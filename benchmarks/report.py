"""`python -m benchmarks.report reports/mini`: the page, figures and table of a folder, with what our benchmarks add.

As `asdm-prof report`, and beside it our plans against the baselines (budgets.json, by `benchmarks/damage.py`) and the
proof (proof.json, by `benchmarks/proof`).

    python -m benchmarks.report reports/mini --beside reports/sd15/profile.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.utils import console
from asdm_prof.records import Profile
from asdm_prof.renderers import Report, _collect, csv, figures, html
from asdm_prof.renderers._collect import Kind
from asdm_prof.renderers.html.sections import with_sections
from benchmarks.budgets import section as budgets_section
from benchmarks.budgets.figures import damage_at_budgets
from benchmarks.budgets.records import Budgets
from benchmarks.proof import section as proof_section
from benchmarks.proof.figures import PROOF
from benchmarks.proof.records import Proof
from benchmarks.script import run

KINDS: dict[str, Kind[Any]] = {
    "budgets": Kind(Budgets, _collect.check_same_profile),
    "proof": Kind(Proof, _collect.check_same_profile),
}
QUESTIONS = with_sections("plan", budgets_section.section, proof_section.section)
FIGURES = (*figures.FIGURES, damage_at_budgets, *PROOF)


def collect(path: Path, beside: Path | None = None) -> Report:
    """A profile with what lies beside it, our benchmarks' files included."""
    return _collect.report(Profile.load(path), path, beside=beside, extra=KINDS)


def main(
    folder: Annotated[Path, typer.Argument(help="A folder with a profile.json; everything is written into it.")],
    beside: Annotated[
        Path | None, typer.Option(help="The profile.json of another model of the same blocks, such as sd15's for mini.")
    ] = None,
) -> None:
    """Render the page, the figures and the table of units."""
    report = collect(folder / "profile.json", beside)
    for what, source in report.sources.items():
        console.say(f"{what}: {source}")
    html.render(report, folder, QUESTIONS)
    figures.render(report, folder, FIGURES)
    csv.render(report, folder)
    console.say(f"Wrote {folder / html.OUTPUT}, {folder / figures.OUTPUT} and {folder / csv.OUTPUT}")


if __name__ == "__main__":
    run(main)
