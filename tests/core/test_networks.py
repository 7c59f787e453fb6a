"""The benchmark of the replacements, at tiny size: what is compared, and that the file holds it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from asdm.families import load_family
from asdm.files import sha256_of

SCRIPT = Path(__file__).parents[2] / "reports" / "networks.py"


@pytest.fixture(scope="module")
def networks():
    spec = importlib.util.spec_from_file_location("networks", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_each_pair_takes_the_same_arguments_and_gives_the_same_shape(networks, tiny_folder):
    found = []
    with torch.inference_mode():
        for pair in networks.pairs(load_family(str(tiny_folder))):
            out, new = (m(*pair.args, **pair.kwargs) for m in (pair.original, pair.new))
            out, new = (getattr(one, "sample", one) for one in (out, new))
            assert out.shape == new.shape
            if "cond_conv" in pair.replacement:
                torch.testing.assert_close(new, out)
            found.append((pair.unit, pair.replacement, pair.level, pair.batch, pair.height))
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
    assert found == attention + clme


def test_the_committed_file_keeps_its_hash_and_its_order(networks):
    path = SCRIPT.parent / "sd15" / "networks.json"
    data, record = json.loads(path.read_text()), networks.Networks.load(path)
    assert record.sha256() == sha256_of(data)
    assert list(json.loads(record.to_json())) == list(data)


def test_the_script_writes_a_record_that_reads_back(networks, tiny_folder, tmp_path, capsys):
    path = tmp_path / "networks.json"
    networks.main(["--family", str(tiny_folder), "-o", str(path), "--time-budget", "0.01", "--threads", "1"])
    found = networks.Networks.load(path)
    assert len(found.cases) == 12 + 12
    assert all(len(case.latency_s.samples) == len(case.original_latency_s.samples) >= 4 for case in found.cases)
    assert "cond_conv by input" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists"):
        networks.main(["--family", str(tiny_folder), "-o", str(path)])
