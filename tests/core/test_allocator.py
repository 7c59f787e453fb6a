"""The benchmark of the allocator, at tiny size: processes take turns, and each is told what its turn says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from asdm.measure import KEEP_MEMORY

SCRIPT = Path(__file__).parents[2] / "reports" / "allocator.py"


@pytest.fixture(scope="module")
def allocator():
    spec = importlib.util.spec_from_file_location("allocator", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_processes_take_turns_and_are_told(allocator, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(allocator, "TURNS", ("as it is", "kept"))
    path = tmp_path / "allocator.json"
    allocator.main(["--family", str(tiny_folder), "-o", str(path), "--calls", "3"])
    record = allocator.Allocator.load(path)
    assert [turn.environment for turn in record.turns] == [{}, KEEP_MEMORY]
    assert [len(turn.latency_s.samples) for turn in record.turns] == [3, 3]
    kept, as_it_is = (turn.latency_s.samples for turn in reversed(record.turns))
    assert record.latency_ratio.low <= sorted(k / a for k, a in zip(kept, as_it_is, strict=True))[1]
    assert "Kept / as it is" in " ".join(capsys.readouterr().err.split())
    assert json.loads(path.read_text())["schema"] == "asdm.allocator/1"


def test_a_file_to_write_is_asked_for(allocator, capsys):
    with pytest.raises(SystemExit) as caught:
        allocator.main([])
    assert caught.value.code == 2
    assert "name the JSON file to write with -o" in capsys.readouterr().err
