"""The benchmark of a training step, at tiny size: what each loop trains, and that pairs become ratios."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import distillation as script


def chosen(family: Path, **more: Any) -> argparse.Namespace:
    given = {"family": str(family), "plan": "a_sdm_clme", "size": None, "batch": 1, "dtype": "fp32", "device": "cpu"}
    return argparse.Namespace(**given | {"threads": 1, "steps": 1, "rounds": 2} | more)


def test_the_plain_loop_trains_everything_and_the_others_the_shallow_blocks(tiny_pipeline: Path) -> None:
    turns = {name: script.run_loop(name, chosen(tiny_pipeline)) for name in script.LOOPS}
    assert turns["end_to_end"].trainable == turns["blockwise"].trainable < turns["plain"].trainable
    for turn in turns.values():
        assert len(turn.step_s) == 1
        assert turn.step_s[0] > 0
        assert turn.peak_bytes >= turn.peak_above_start_bytes >= 0


def test_pairs_become_ratios() -> None:
    def turn(seconds: float, peak: int) -> Any:
        return script.Turn(step_s=(seconds,) * 3, peak_bytes=peak, peak_above_start_bytes=peak - 100, trainable=7)

    found = script._compared("blockwise", [turn(1.0, 300), turn(2.0, 300)], [turn(3.0, 900), turn(6.0, 900)])
    assert found.steps_per_second_ratio.median == pytest.approx(3.0)
    assert found.memory_saved == pytest.approx(1 - 300 / 900)
    assert found.memory_saved_above_start == pytest.approx(1 - 200 / 800)
    assert script.row(found)["steps/s ×"] == "3.00 [3.00, 3.00]"


def test_a_turn_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the plain loop failed: .*no config of a diffusers UNet"):
        script._in_a_process("plain", chosen(tmp_path))
    with pytest.raises(SystemExit):
        script.main([])
