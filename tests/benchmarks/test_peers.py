"""The comparison with other tools judges by the closed form; the counters that the core installs are run for real."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import peers as script
from tests.tiny import unet_args

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "sd15_unet.json").read_text())


def true_units() -> dict[str, int]:
    return {fqn: row["macs"] for fqn, row in GOLDEN["units"].items()}


def test_the_truth_has_no_error() -> None:
    judged = script.judge(GOLDEN["total"]["macs"], true_units(), GOLDEN)
    assert judged["total_error"] == judged["worst_unit_error"] == 0
    assert judged["of_true_costliest"] == 5
    assert len(judged["units"]) == 38


def test_leaving_out_attention_is_seen() -> None:
    """Without QK and AV the total is 15.7 % low, the 64×64 Transformers 56.5 %, and the five costliest are others."""
    without = {fqn: row["macs"] - row["attention_macs"] for fqn, row in GOLDEN["units"].items()}
    judged = script.judge(sum(without.values()), without, GOLDEN)
    assert judged["total_error"] == pytest.approx(-0.157, abs=0.0005)
    assert judged["worst_unit_error"] == pytest.approx(-0.565, abs=0.0005)
    assert judged["of_true_costliest"] == 0


def test_torch_and_fvcore_miss_attention_and_this_tool_does_not(tiny_unet: nn.Module) -> None:
    inputs = {name: value for name, value in unet_args().items() if name != "return_dict"}
    unit = "up_blocks.3.attentions.0"
    with torch.no_grad():
        ours, by_name = script.asdm(copy.deepcopy(tiny_unet), inputs)
        for count in (script.fvcore, script.torch_flop_counter):
            theirs, their_units = count(copy.deepcopy(tiny_unet), inputs)
            assert theirs < 0.9 * ours
            assert their_units[unit] < 0.7 * by_name[unit]


def test_printed_counts_are_read_with_their_ranges() -> None:
    text = """UNet(
  3.0 M, 100% Params, 9.0 MMac, 100% MACs,
  (blocks): ModuleList(
    2.0 M, 60% Params, 8.0 MMac, 80% MACs,
    (0-1): 2 x Block(
      1.0 M, 30% Params, 4.0 MMac, 40% MACs,
      (conv): Conv2d(1.0 M, 30% Params, 4.0 MMac, 40% MACs, 4, 4)
    )
  )
  (out): Linear(1.0 M, 40% Params, 1.0 MMac, 20% MACs, in_features=1)
)"""
    assert dict(script.printed_counts(text, "MMac")) == {
        "blocks": 8.0, "blocks.0": 4.0, "blocks.1": 4.0, "blocks.0.conv": 4.0, "blocks.1.conv": 4.0, "out": 1.0,
    }  # fmt: skip


def test_the_table_lists_what_does_not_run_with_its_error() -> None:
    good = {"name": "x", "version": "1", "seconds": 1.0, **script.judge(GOLDEN["total"]["macs"], true_units(), GOLDEN)}
    text = script.table({"tools": [good, {"name": "y", "error": "ImportError: no y"}]})
    assert "| x 1 | 401.6 G | exact | exact | 5 | 1.0 |" in text
    assert "| y | does not run: ImportError: no y |" in text


def test_the_results_page_shows_the_saved_run() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert script.table(json.loads(script.RESULT.read_text())) in page
