"""What our benchmarks add to a page, to the figures and to what is gathered beside a profile."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest

from asdm_prof.renderers import figures, html
from benchmarks import report
from benchmarks.budgets.section import rows_of
from tests.asdm_prof import synthetic
from tests.asdm_prof.renderers.test_html import picture, table, text_of


@cache
def full() -> str:
    return html.page(synthetic.full_report(), report.QUESTIONS)


def test_baselines_stand_beside_our_plan_at_each_budget() -> None:
    drawn = picture(full(), "budgets")
    assert sum(c.get("class") == "point own" for c in drawn.iter("circle")) == 3
    assert sum(r.get("class") == "glue" for r in drawn.iter("rect")) == 3
    assert "than the best baseline (squares) within 2 of 3 budgets, 1 of them beyond the 95 % interval" in text_of(
        full()
    )
    assert table(full(), "budgets").partition("<tbody>")[2].count("<tr>") == 6


def test_the_proof_is_told_drawn_and_tabled() -> None:
    told = text_of(full())
    assert "Proof: equal latency, equal training" in told
    assert "the aim is" in told
    assert 'class="proof-0"' in full()
    rows = synthetic.full_report().extra["proof"].rows
    assert table(full(), "proof").partition("<tbody>")[2].count("<tr>") == sum(bool(r.results) for r in rows) + 1


def test_without_their_files_the_sections_are_left_out() -> None:
    bare = html.page(dataclasses.replace(synthetic.full_report(), extra={}), report.QUESTIONS)
    assert "Compared with other ways to choose" not in bare
    assert "Proof: equal latency" not in bare
    assert "Compared with other ways to choose" not in html.page(synthetic.full_report()), (
        "they are ours, not the package's"
    )


def test_everything_fits_half_a_megabyte() -> None:
    assert len(full().encode()) <= 500_000


def test_our_files_are_found_beside_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = synthetic.profile()
    path = profile.save(tmp_path / "run" / "profile.json")
    budgets = synthetic.budgets_of(profile)
    budgets.save(tmp_path / "run" / "budgets.json")
    synthetic.proof_of(synthetic.profile(seed=1)).save(tmp_path / "run" / "proof.json")
    gathered = report.collect(path)
    assert gathered.extra == {"budgets": budgets, "proof": None}, "the proof is another profile's"
    assert gathered.sources["budgets"] == str(tmp_path / "run" / "budgets.json")


def test_our_figures_are_drawn_and_repeat_byte_for_byte(tmp_path: Path) -> None:
    own = [draw for draw in report.FIGURES if draw not in figures.FIGURES]
    paths = figures.render(synthetic.full_report(), tmp_path / "once", own)
    assert {path.stem for path in paths} == {"damage_at_budgets", "quality_at_latency", "components"}
    for path in figures.render(synthetic.full_report(), tmp_path / "again", own):
        assert path.read_bytes() == (tmp_path / "once" / "figures" / path.name).read_bytes(), path.name


def test_budgets_as_rows() -> None:
    rows = rows_of(synthetic.budgets())
    assert [row["won"] for row in rows] == ["yes", "no"]
    assert rows[1]["best baseline"] == "greedy"
