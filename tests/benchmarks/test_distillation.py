"""The benchmark of a training step, at tiny size: what each loop trains, and that pairs become ratios."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import distillation as script


def settings_for(family: Path) -> script.LoopSettings:
    return script.LoopSettings(str(family), threads=1, steps=1, rounds=2)


def test_the_plain_loop_trains_everything_and_the_others_the_shallow_blocks(tiny_pipeline: Path) -> None:
    turns = {name: script.run_loop(name, asdict(settings_for(tiny_pipeline))) for name in script.LOOPS}
    assert turns["end_to_end"].trainable == turns["blockwise"].trainable < turns["plain"].trainable
    for turn in turns.values():
        assert len(turn.step_s) == 1
        assert turn.step_s[0] > 0
        assert turn.peak_bytes >= turn.peak_above_start_bytes >= 0


def test_pairs_become_ratios() -> None:
    def turn(seconds: float, peak: int) -> Any:
        return script.Turn(step_s=(seconds,) * 3, peak_bytes=peak, peak_above_start_bytes=peak - 100, trainable=7)

    loop = script._compare("blockwise", [turn(1.0, 300), turn(2.0, 300)], [turn(3.0, 900), turn(6.0, 900)])
    assert loop.steps_per_second_ratio.median == pytest.approx(3.0)
    assert loop.memory_saved == pytest.approx(1 - 300 / 900)
    assert loop.memory_saved_above_start == pytest.approx(1 - 200 / 800)
    assert script.row(loop)["steps/s ×"] == "3.00 [3.00, 3.00]"


def test_modes_and_the_plain_loop_take_turns(tiny_pipeline: Path, tmp_path: Path, monkeypatch: Any) -> None:
    names = []

    def run_here(function: Any, name: str, values: Any) -> script.Turn:
        names.append(name)
        return script.Turn(step_s=(1.0,), peak_bytes=2, peak_above_start_bytes=1, trainable=3)

    monkeypatch.setattr(script, "in_fresh_process", run_here)
    script.main(output=tmp_path / "cost.json", **asdict(settings_for(tiny_pipeline)))
    assert names == [name for mode in ("end_to_end", "blockwise") for name in ("plain", mode, mode, "plain")]
    record = script.DistillationCost.load(tmp_path / "cost.json")
    assert [(loop.name, len(loop.turns), len(loop.plain_turns)) for loop in record.loops] == [
        ("end_to_end", 2, 2), ("blockwise", 2, 2),
    ]  # fmt: skip


def test_a_turn_that_fails_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(script, "in_fresh_process", lambda function, *arguments: function(*arguments))
    with pytest.raises(ValueError, match=r"the plain loop failed: .*is not the config of a diffusers UNet"):
        script.measure(settings_for(tmp_path), lambda *_: None)
