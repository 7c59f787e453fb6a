"""One UNet call as `speedscope.json`, for https://www.speedscope.app: a flame graph of block → layer → unit.

The format is speedscope's evented profile: frames are shared, and each opens and closes in order of time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asdm.utils.io import write_whole
from asdm_prof.records import Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain
from asdm_prof.renderers._timeline import Slice, slices

OUTPUT = "speedscope.json"
SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def render(report: Report, folder: Path) -> list[Path]:
    """Write `speedscope.json`."""
    return [
        write_whole(folder / OUTPUT, json.dumps(flame(report.profile), indent=1, allow_nan=False) + "\n", force=True)
    ]


def flame(profile: Profile) -> dict[str, Any]:
    """The file's JSON: one evented profile, whose frames are the slices in data-flow order."""
    timeline = slices(profile)
    title = plain(f"{profile.title}, one UNet call ({profile.backend} {profile.dtype})")
    return {
        "$schema": SCHEMA,
        "exporter": "asdm-prof",
        "name": title,
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": plain(one.node.label), "file": plain(one.node.name)} for one in timeline]},
        "profiles": [
            {
                "type": "evented",
                "name": title,
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": timeline[0].end_ns,
                "events": list(_events(timeline)),
            }
        ],
    }


def _events(timeline: list[Slice]) -> Iterator[dict[str, Any]]:
    """Open each slice when it starts; before the next one of its depth or above, close what is done."""
    opened: list[int] = []
    now = 0

    def close(to_depth: int) -> Iterator[dict[str, Any]]:
        while len(opened) > to_depth:
            yield {"type": "C", "frame": opened.pop(), "at": now}

    for i, one in enumerate(timeline):
        yield from close(one.depth)
        yield {"type": "O", "frame": i, "at": now}
        opened.append(i)
        if not one.node.children:
            now = one.end_ns
    yield from close(0)
