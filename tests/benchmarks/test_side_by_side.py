"""Plans of several models beside each other: what becomes of each unit, and what that saves."""

from __future__ import annotations

import pytest

from asdm.plan.edits import PruningPlan, RemoveUnit, ReplaceUnit
from benchmarks.side_by_side import GONE, KEPT, fates, figure_of, summary
from tests.asdm_prof import synthetic


def test_every_unit_is_drawn_with_what_it_becomes() -> None:
    profile = synthetic.profile()
    option = next(one for one in profile.options if one.replacement == "gri_attention")
    gone = next(unit for unit in profile.units if unit.kind == "transformer" and unit.fqn != option.unit)
    edits = (RemoveUnit(unit=gone.fqn), ReplaceUnit(unit=option.unit, with_="gri_attention"))
    plan = PruningPlan(family=profile.family, edits=edits)
    fate = fates(plan, profile)
    assert fate[gone.fqn] == (GONE, 0.0)
    assert fate[option.unit] == ("gri attention", option.share.median)
    assert sum(name == KEPT for name, _ in fate.values()) == len(profile.units) - 2
    axes = figure_of([(plan, profile), (plan, profile)]).axes
    assert len(axes) == 2
    assert {text.get_text() for text in axes[0].texts} == {GONE, "gri attention"}
    filled = [bar.get_width() for bar in axes[0].patches if bar.get_facecolor()[3]]
    assert filled == pytest.approx([100 * left for _, left in fate.values()])
    saved = 100 * (profile.part(option.unit).share.median - option.share.median)
    assert f"1 gri attention (-{saved:.1f} %)" in summary(plan, profile)
