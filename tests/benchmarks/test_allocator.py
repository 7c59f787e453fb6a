"""The benchmark of the allocator, at tiny size: processes take turns, and each is told what its turn says."""

from __future__ import annotations

import json

import pytest

from asdm.measure.machine import KEEP_MEMORY
from benchmarks import allocator as script


def test_processes_take_turns_and_are_told(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "TURNS", ("as it is", "kept"))
    path = tmp_path / "allocator.json"
    script.main(["--family", str(tiny_folder), "-o", str(path), "--calls", "3"])
    record = script.Allocator.load(path)
    assert [turn.environment for turn in record.turns] == [{}, KEEP_MEMORY]
    assert [len(turn.latency_s.samples) for turn in record.turns] == [3, 3]
    kept, as_it_is = (turn.latency_s.samples for turn in reversed(record.turns))
    assert record.latency_ratio.low <= sorted(k / a for k, a in zip(kept, as_it_is, strict=True))[1]
    assert "Kept / as it is" in " ".join(capsys.readouterr().err.split())
    assert json.loads(path.read_text())["schema"] == "asdm.allocator/1"


def test_a_file_to_write_is_asked_for(capsys):
    with pytest.raises(SystemExit) as caught:
        script.main([])
    assert caught.value.code == 2
    assert "name the JSON file to write with -o" in capsys.readouterr().err
