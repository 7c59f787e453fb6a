"""When a run reached a loss, and the table of ways to a student."""

from __future__ import annotations

from asdm_prof.records import Interval
from benchmarks.units import Curve, Start, UnitsBench, _reached, figure_of, rows_of
from tests.asdm_prof import synthetic


def test_a_loss_is_reached_where_its_running_mean_is_at_it() -> None:
    falling = [float(loss) for loss in range(20, 0, -1)]
    assert _reached(falling, 0.5) is None
    assert _reached(falling, 10.5) == 11  # the mean of steps 10 and 11, which are 11 and 10
    assert _reached(falling, 19.5) == 2


def test_the_table_has_a_row_for_every_way() -> None:
    start = Start(name="fitted", damage=Interval(value=0.1, low=0.09, high=0.12), steps=0, seconds=1.0)
    result = UnitsBench(
        created_utc="", command="", family="mini", plan_sha256="0", ratio=0.5, prompts=2,
        starts=(start, start.model_copy(update={"name": "from-units"})), goal=0.2,
        curves=(Curve(name="from-units", output=(0.3, 0.1), reached_at=2),), environment=synthetic.ENVIRONMENT,
    )  # fmt: skip
    first, second = rows_of(result)
    assert (first["damage"], first["steps to the loss"]) == ("0.1 [0.09, 0.12]", "")
    assert second["steps to the loss"] == "2"
    curve, reached, goal = figure_of(result).axes[0].lines
    assert curve.get_xydata().tolist() == [[1, 0.3], [2, 0.1]]
    assert (reached.get_xydata().tolist(), goal.get_ydata()) == ([[2, 0.2]], [0.2, 0.2])
