"""A training step of SDXL at its true size, with random weights, at 256 pixels: 68 seconds and 15 GiB on 2 cores."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from asdm.measure import machine

GIB = 2**30


@pytest.mark.real
@pytest.mark.serial
def test_a_step_of_sdxl_takes_about_what_the_dry_run_says(run: Any, photos: Path, tmp_path: Path) -> None:
    if machine.free_memory_bytes("cpu") < 17 * GIB:
        pytest.skip("needs 17 GiB of memory")
    line = ("asdm", "distill", "a_sdm", "--teacher", "sdxl", "--weights", "random", "--data", f"folder:{photos}")
    line += ("--size", 256, "--steps", 1, "--batch", 1, "--recipe", "without_incubation", "--weight", "perceptual=0")
    line += ("--ema", 0, "-o", "student")
    (stage,) = json.loads(run(*line, "--dry-run", "--json").out)["stages"]
    done = run(*line)
    assert done.code == 0, done.err
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.9 * stage["memory_bytes"] < peak < 1.25 * stage["memory_bytes"]
    (log,) = (tmp_path / "student" / "log.jsonl").read_text().splitlines()
    assert json.loads(log)["loss"] > 0
