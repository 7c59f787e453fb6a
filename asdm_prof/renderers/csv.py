"""Every unit and piece of glue as one row of `units.csv`, in data-flow order; seconds, bytes and single MACs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

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
    return {
        "fqn": part.fqn,
        "label": part.label,
        "kind": part.kind,
        "block": part.block,
        "layer": part.layer,
        "params": part.params,
        "conv_macs": part.conv_macs,
        "linear_macs": part.linear_macs,
        "attention_macs": part.attention_macs,
        "macs": part.macs,
        "latency_median_s": part.latency_s.median,
        "latency_low_s": part.latency_s.low,
        "latency_high_s": part.latency_s.high,
        "share": part.share.median,
        "share_low": part.share.low,
        "share_high": part.share.high,
        "redundancy": ranked.redundancy.median if ranked else None,
        "rank": ranked.rank if ranked else None,
        "tie_group": ranked.tie_group if ranked else None,
        "peak_memory_bytes": part.peak_memory_bytes,
        "parameter_bytes": part.parameter_bytes,
        "moved_bytes": part.moved_bytes,
        "bound": part.roofline.bound if part.roofline else None,
        "attained": part.roofline.attained if part.roofline else None,
    }
