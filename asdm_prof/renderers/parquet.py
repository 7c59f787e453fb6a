"""Every raw sample as one row of `samples.parquet`: part, run and seconds, with what the part holds and computes.

For your own statistics; `csv` has one row per part with the medians. Needs the extra `asdm-prof[parquet]`.
"""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pyarrow  # noqa: F401  (pandas writes parquet with it; imported here, so that its lack is said in one sentence)

from asdm.utils.io import write_whole
from asdm.utils.sizes import shown
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers.csv import units_frame

OUTPUT = "samples.parquet"


def render(report: Report, folder: Path) -> list[Path]:
    """Write `samples.parquet`."""
    buffer = io.BytesIO()
    samples_frame(report.profile).to_parquet(buffer, engine="pyarrow", index=False)
    return [write_whole(folder / OUTPUT, buffer.getvalue(), force=True)]


def samples_frame(profile: Profile) -> pd.DataFrame:
    """The rows of `units.csv`, each as often as its part was timed, with `run`, `seconds` and the run's settings."""
    samples = pd.DataFrame(
        [
            {"fqn": part.fqn, "run": run, "seconds": seconds}
            for part in profile.parts
            for run, seconds in enumerate(part.latency_s.samples)
        ]
    )
    frame = units_frame(profile).merge(samples, on="fqn", validate="one_to_many")
    settings = ("family", "backend", "dtype", "device", "threads", "batch", "size", "created_utc")
    values = {name: getattr(profile, name) for name in settings}
    return frame.assign(**{name: shown(value) if isinstance(value, tuple) else value for name, value in values.items()})
