"""Compares model.mlpackage with PyTorch's output in check.npz and times it, on a Mac: `python latency.py`.

Needs coremltools and numpy. `python latency.py --units CPU_AND_NE --runs 50` times one choice of compute units.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

HERE = Path(__file__).parent
UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")


def main() -> None:
    """Print one line of JSON for each choice of compute units."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", choices=UNITS, action="append", help="default: all four")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    if platform.system() != "Darwin":
        raise SystemExit(f"Core ML runs on macOS alone; this is {platform.system()}.")
    for units in options.units or UNITS:
        print(json.dumps(measure(units, options.runs), allow_nan=False), flush=True)


def measure(units: str, runs: int) -> dict[str, object]:
    """Median seconds of a call, its quartiles, and the largest difference as a share of the largest output."""
    import coremltools
    import numpy as np

    with np.load(HERE / "check.npz") as file:
        inputs = {name: file[name] for name in file.files if name != "out_sample"}
        expected = file["out_sample"]
    inputs = {name: v.astype(np.int32 if v.dtype.kind == "i" else np.float32) for name, v in inputs.items()}
    model = coremltools.models.MLModel(
        str(HERE / "model.mlpackage"), compute_units=getattr(coremltools.ComputeUnit, units)
    )
    output = model.predict(inputs)["out_sample"]
    for _ in range(2):
        model.predict(inputs)
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        model.predict(inputs)
        seconds.append(time.perf_counter() - began)
    difference = float(np.abs(output - expected).max() / np.abs(expected).max())
    low, median, high = statistics.quantiles(seconds, n=4)
    return {
        "units": units,
        "latency_s": median,
        "quartiles_s": [low, high],
        "difference": difference if np.isfinite(difference) else None,
        "batch": int(expected.shape[0]),
        "machine": platform.machine(),
        "macos": platform.mac_ver()[0],
    }


if __name__ == "__main__":
    main()
