"""Every unit and piece of glue as one row of `units.csv`, in data-flow order; seconds, bytes and single MACs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from asdm.utils.console import spreadsheet_safe
from asdm.utils.io import write_whole
from asdm_prof.analysis.rank import Ranked, rank
from asdm_prof.records import PartRecord, Profile
from asdm_prof.renderers import Report

OUTPUT = "units.csv"

INTEGERS = ("layer", "rank", "tie_group")


def render(report: Report, folder: Path) -> list[Path]:
    """Write `units.csv`."""
    text = units_frame(report.profile).to_csv(index=False, lineterminator="\n")
    return [write_whole(folder / "units.csv", text, force=True)]


def units_frame(profile: Profile) -> pd.DataFrame:
    """Units and glue as a table; redundancy and rank are empty for glue, which cannot be removed."""
    ranked = {row.fqn: row for row in rank(profile)}
    frame = pd.DataFrame([_row(part, ranked.get(part.fqn)) for part in profile.parts])
    return frame.astype(dict.fromkeys(INTEGERS, "Int64"))


def _row(part: PartRecord, ranked: Ranked | None) -> dict[str, Any]:
    latency, share, roofline = part.latency_s, part.share, part.roofline
    names = ("fqn", "label", "kind", "block", "layer", "params", "conv_macs", "linear_macs", "attention_macs", "macs")
    times = {f"latency_{name}_s": getattr(latency, name) for name in ("median", "low", "high")}
    shares = {"share": share.median, "share_low": share.low, "share_high": share.high}
    places = {
        "redundancy": ranked.redundancy.median if ranked else None,
        "rank": ranked.rank if ranked else None,
        "tie_group": ranked.tie_group if ranked else None,
    }
    sizes = {name: getattr(part, name) for name in ("peak_memory_bytes", "parameter_bytes", "moved_bytes")}
    bound = {"bound": roofline.bound if roofline else None, "attained": roofline.attained if roofline else None}
    return {name: spreadsheet_safe(getattr(part, name)) for name in names} | times | shares | places | sizes | bound
