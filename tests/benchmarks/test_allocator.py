"""The benchmark of the allocator, at tiny size: processes take turns, and each is told whether to keep memory."""

from __future__ import annotations

import json

from asdm.measure.machine import KEEP_MEMORY
from benchmarks import allocator as script


def test_processes_take_turns_and_keep_memory_or_not(tiny_folder, tmp_path, capsys, monkeypatch, fresh_processes_here):
    monkeypatch.setattr(script, "KEPT", (False, True))
    path = tmp_path / "allocator.json"
    script.main(path, str(tiny_folder), calls=3)
    record = script.Allocator.load(path)
    assert [turn.environment for turn in record.turns] == [{}, KEEP_MEMORY]
    assert [len(turn.latency_s.samples) for turn in record.turns] == [3, 3]
    kept, as_it_is = (turn.latency_s.samples for turn in reversed(record.turns))
    assert record.latency_ratio.low <= sorted(k / a for k, a in zip(kept, as_it_is, strict=True))[1]
    assert "Kept / as it is" in " ".join(capsys.readouterr().err.split())
    assert json.loads(path.read_text())["schema"] == "asdm.allocator/1"
