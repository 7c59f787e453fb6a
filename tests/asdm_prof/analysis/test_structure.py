"""One model's structure beside another's: parts of the whole, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asdm_prof.analysis import structure
from asdm_prof.renderers import figures, html
from tests.asdm_prof import synthetic


def test_parts_of_time_and_parameters_stand_side_by_side() -> None:
    ours, theirs = synthetic.profile(), synthetic.profile(seed=7)
    *blocks, shallow = structure.rows(ours, theirs)
    assert [row.name for row in blocks] == list(ours.topology.blocks)
    assert shallow.name == "down_blocks.0 and up_blocks.3"
    assert shallow.ours.params == pytest.approx(blocks[0].ours.params + blocks[-1].ours.params)
    assert shallow.ours.params < 0.05 < 0.25 < shallow.ours.time.median
    assert 0.9 < sum(row.ours.time.median for row in blocks) < 1
    assert blocks[0].theirs.time != blocks[0].ours.time
    assert blocks[0].theirs.macs == blocks[0].ours.macs


def test_the_order_of_units_agrees_with_itself_and_less_with_another() -> None:
    ours = synthetic.profile()
    assert structure.rank_agreement(ours, ours) == (1.0, 38)
    agreement, units = structure.rank_agreement(ours, synthetic.profile("sdxl"))
    assert agreement < 0.9
    assert 10 < units < 38


def test_models_of_other_blocks_are_refused(run: Any, tmp_path: Path) -> None:
    synthetic.profile("sdxl").save(tmp_path / "sdxl.json")
    synthetic.profile().save(tmp_path / "profile.json")
    done = run("asdm-prof", "report", "profile.json", "--beside", "sdxl.json", "-o", "page", "--format", "html")
    assert done.code == 2
    assert "only models with the same blocks can be compared" in done.err
    assert not (tmp_path / "page").exists()


def test_the_report_tells_what_carries_over(run: Any, tmp_path: Path) -> None:
    synthetic.profile().save(tmp_path / "profile.json")
    synthetic.profile(seed=7).model_copy(update={"title": "Another <b>"}).save(tmp_path / "other.json")
    done = run("asdm-prof", "report", "profile.json", "--beside", "other.json", "-o", "page", "--format", "html")
    assert done.code == 0, done.err
    page = (tmp_path / "page" / "report.html").read_text()
    assert "The same structure as Another &lt;b&gt;?" in page
    assert 'id="table-beside"' in page
    assert "The same structure as" not in html.page(synthetic.report())


def test_the_figure_is_drawn_where_there_is_another(tmp_path: Path) -> None:
    assert figures.structure(synthetic.report()) is None
    drawn = figures.structure(synthetic.full_report())
    assert drawn is not None
    assert [len(axes.patches) for axes in drawn.axes] == [18, 18]
