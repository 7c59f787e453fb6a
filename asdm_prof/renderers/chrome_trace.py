"""One UNet call as `trace.json`, for https://ui.perfetto.dev or chrome://tracing: block → layer → unit on a timeline.

The format is Chrome's trace events: complete events (`ph` X) of one thread, nested by time, in microseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asdm.utils import sizes
from asdm.utils.io import write_whole
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers._timeline import Slice, slices

OUTPUT = "trace.json"
PROCESS, THREAD = 1, 1


def render(report: Report, folder: Path) -> list[Path]:
    """Write `trace.json`."""
    return [
        write_whole(folder / OUTPUT, json.dumps(trace(report.profile), indent=1, allow_nan=False) + "\n", force=True)
    ]


def trace(profile: Profile) -> dict[str, Any]:
    """The trace's JSON: names of process and thread, then an event for every slice."""
    runtime = f"{profile.backend} {profile.dtype}, batch {profile.batch}, {sizes.shown(profile.size)} px"
    return {
        "displayTimeUnit": "ms",
        "otherData": {"profile_sha256": profile.sha256(), "command": plain(profile.command)},
        "traceEvents": [
            _name("process_name", plain(f"{profile.title}, one UNet call")),
            _name("thread_name", plain(f"median times, {runtime}")),
            *(_event(one) for one in slices(profile)),
        ],
    }


def _name(what: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": THREAD, "args": {"name": name}}


def _event(one: Slice) -> dict[str, Any]:
    node = one.node
    args: dict[str, Any] = {"share": node.share, "macs": node.macs, "params": node.params}
    if node.level == "part":
        (part,) = node.parts
        args |= {"fqn": plain(part.fqn), "low_ms": 1e3 * part.latency_s.low, "high_ms": 1e3 * part.latency_s.high}
    return {
        "ph": "X",
        "name": plain(node.label),
        "cat": node.kind or node.level,
        "pid": PROCESS,
        "tid": THREAD,
        "ts": one.start_ns / 1e3,
        "dur": (one.end_ns - one.start_ns) / 1e3,
        "args": args,
    }
