"""The benchmark of the place of compiled code: what a slow convolution depends on, and that fresh processes time it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import placement as script


def made_up(slow: dict[tuple[int, int, str], float], processes: int = 5, shapes: int = 6):
    """Turns of a machine that drifts between processes, in which the named (process, shape, way) take longer."""
    turns = []
    for i in range(processes):
        seconds = {
            way: tuple((1 + 0.1 * i) * (j + 1) * slow.get((i, j, way), 1.0) for j in range(shapes))
            for way in script.WAYS
        }
        turns.append(script.Turn(threads=2, environment={"cpu": "made up"}, **seconds))
    return turns


def test_a_shape_is_compared_with_itself_in_other_processes():
    np.testing.assert_allclose(script.ratios(made_up({}), "first"), 1)
    ratios = script.ratios(made_up({(1, 4, "first"): 1.5}), "first")
    assert ratios[1, 4] == pytest.approx(1.5)
    assert np.delete(ratios.ravel(), 1 * 6 + 4) == pytest.approx(1)


def test_what_is_slow_in_one_process_is_listed_with_what_it_hangs_on():
    code = {(1, 4, "first"): 1.5, (1, 4, "other_tensors"): 1.48, (3, 0, "first"): 1.05}
    record = script.compare(made_up(code))
    (one,) = record.slow
    assert (one.process, one.height) == (1, script.LOWEST + 4)
    assert (one.first, one.other_tensors, one.other_code) == pytest.approx((1.5, 1.48, 1.0))
    assert one.hangs_on_code
    tensors = script.Slow(process=1, height=20, first=1.5, other_tensors=1.0, other_code=1.5)
    assert not tensors.hangs_on_code
    assert script.row(one)["map"] == "320×24×32"
    assert record.middle_95[0] <= 1 <= record.middle_95[1] <= 1.5


def test_it_asks_fresh_processes_and_writes_what_they_said(tmp_path, capsys, fresh_processes_here):
    path = tmp_path / "placement.json"
    script.main(path, threads=1, processes=3, shapes=3)
    record = script.Placement.load(path)
    assert [len(one.first) for one in record.processes] == [3, 3, 3]
    assert len({one.first for one in record.processes}) == 3
    assert record.heights == (20, 21, 22)
    assert all("MALLOC_TRIM_THRESHOLD_" in one.environment["malloc"] for one in record.processes)
    assert "of 9 are a tenth slower than in other processes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["processes", "shapes"])
def test_too_few_to_tell_chance_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be at least 3, got 2"):
        script.main(tmp_path / "placement.json", **{name: 2})
