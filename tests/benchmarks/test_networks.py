"""The benchmark of the replacements, at tiny size: what is compared, and that the file holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from asdm.models.families import load_family
from asdm.unet.replacements import names_of
from asdm.utils.record import sha256_of
from benchmarks import networks as script

REPORTS = Path(__file__).parents[2] / "reports"


def test_each_pair_takes_the_same_arguments_and_gives_the_same_shape(tiny_folder):
    compared = []
    with torch.inference_mode():
        for pair in script.pairs(load_family(str(tiny_folder))):
            out, new = (m(*pair.args, **pair.kwargs) for m in (pair.original, pair.new))
            out, new = (getattr(one, "sample", one) for one in (out, new))
            assert out.shape == new.shape
            if "cond_conv" in pair.replacement:
                torch.testing.assert_close(new, out)
            compared.append((pair.unit, pair.replacement, pair.level, pair.batch, pair.height))
    attention = [
        (f"down_blocks.{i}.attentions.0", name, level, 1, 16 >> i)
        for i in range(3)
        for name in ("gri_attention", "kv_downsample")
        for level in ("unit", "attention")
    ]
    kinds = [("cond_conv by input", b) for b in (1, 2, 8)]
    kinds += [("cond_conv by timestep", 1), ("cond_conv folded for 1", 1), ("cond_conv folded for 30", 1)]
    clme = [(f"{unit}", kind, "unit", batch, 16) for unit in ("down_blocks.0.resnets.0", "up_blocks.3.resnets.2")
            for kind, batch in kinds]  # fmt: skip
    assert compared == attention + clme


def test_all_of_them_is_every_replacement_with_every_setting_at_every_resolution(tiny_folder):
    compared = set()
    with torch.inference_mode():
        for pair in script.all_pairs(load_family(str(tiny_folder))):
            out, new = (m(*pair.args, **pair.kwargs) for m in (pair.original, pair.new))
            assert getattr(out, "sample", out).shape == getattr(new, "sample", new).shape
            compared.add((pair.unit.split(".")[1], pair.replacement))
    names = {name.partition(" ")[0] for _, name in compared}
    assert names == set(names_of("all"))
    assert {(level, name) for level in "012" for name in ("kv_downsample", "kv_downsample (factor 3)")} <= compared
    assert {(level, "narrow_resnet") for level in "0123"} <= compared


def test_the_committed_file_keeps_its_hash_and_its_order():
    path = REPORTS / "sd15" / "networks.json"
    data, record = json.loads(path.read_text()), script.Networks.load(path)
    assert record.sha256() == sha256_of(data)
    assert list(json.loads(record.to_json())) == list(data)


def test_the_script_writes_a_record_that_reads_back(tiny_folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "networks.json"
    kept = []

    def run_here(function, *arguments, keep_memory):
        """Both turns in this process; a fresh one is the subject of `test_script.py`."""
        kept.append(keep_memory)
        return function(*arguments)

    monkeypatch.setattr("benchmarks.script.in_fresh_process", run_here)
    script.main(path, str(tiny_folder), threads=1, processes=2, time_budget=0.01, keep_memory=True)
    assert kept == [True, True]
    record = script.Networks.load(path)
    assert len(record.cases) == 12 + 12
    for case in record.cases:
        assert len(case.processes) == 2
        assert all(len(one.latency_s.samples) == len(one.original_latency_s.samples) >= 4 for one in case.processes)
        low, high = sorted(one.latency_ratio.median for one in case.processes)
        assert low <= case.latency_ratio.low <= case.latency_ratio.median == (low + high) / 2 <= high
    assert "cond_conv by input" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists"):
        script.main(path, str(tiny_folder))
