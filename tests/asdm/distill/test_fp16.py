"""Training in fp16: the loss scale over stops and borders of stages, steps that are skipped, and their log."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm.distill import recipes
from asdm.utils.record import read_json
from tests.asdm.distill.half import scale_gradients
from tests.asdm.distill.training import WEIGHTS, Stop, go, log_of, stop_after


def test_the_loss_scale_goes_on_over_stops_and_from_stage_to_stage(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doubles at every step here, and an fp32 sum of scaled gradients rounds as the others do."""
    scale_gradients(monkeypatch, init_scale=2.0, growth_interval=1)
    whole = go(tiny_pipeline, tmp_path / "whole", dtype="fp16")
    assert [stage.scaler["scale"] for stage in whole.stages] == [2.0**3, 2.0**5]
    for step, stage in ((2, "compressed"), (1, "combined")):  # the second began after the border
        with pytest.raises(Stop):
            go(tiny_pipeline, tmp_path / "stopped", dtype="fp16", on_progress=stop_after(step, stage))
    stopped = go(tiny_pipeline, tmp_path / "stopped", dtype="fp16")
    assert [stage.scaler for stage in stopped.stages] == [stage.scaler for stage in whole.stages]
    assert (tmp_path / "stopped" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_a_skipped_step_is_marked_and_endless_skipping_ends(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_gradients(monkeypatch, init_scale=4.0)
    scale = torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda self, loss: scale(self, loss) * float("inf"))
    more: dict[str, Any] = {"recipe": recipes.bk_sdm, "dtype": "fp16", "steps": 9, "checkpoint_s": 1e9}
    message = r"the gradient overflows fp16 however small the loss is scaled \(by 0\.5 now\) at step 3 .*--amend"
    with pytest.raises(ValueError, match=message):
        go(tiny_pipeline, tmp_path / "s", "a_sdm", **more)
    lines = log_of(tmp_path / "s")
    assert [(line["gradient_norm"], line["skipped"]) for line in lines] == [(None, True)] * 2
    for line in (tmp_path / "s" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert "scaler" not in read_json(tmp_path / "s" / "run.json")
