"""Files for other people's viewers: each is read back by the rules of its format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asdm.utils import registry
from asdm_prof.analysis.tree import tree_of
from asdm_prof.records import Profile
from asdm_prof.renderers import Report, chrome_trace, parquet, speedscope
from tests.asdm_prof import synthetic
from tests.asdm_prof.renderers.test_renderers import HOSTILE, hostile_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports")
    for name in ("parquet", "chrome_trace", "speedscope"):
        registry.load("asdm_prof.renderers", name).render(synthetic.report(), path)
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def median_ns(profile: Profile, fqn: str) -> int:
    return round(1e9 * profile.part(fqn).latency_s.median)


@pytest.mark.parametrize("name", registry.names("asdm_prof.renderers"))
def test_every_renderer_has_the_seams_interface(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renderer = registry.load("asdm_prof.renderers", name)
    assert renderer.__doc__
    written = renderer.render(Report(synthetic.profile()), tmp_path)  # the least that there is
    if renderer.OUTPUT is None:
        assert written == []
        assert capsys.readouterr().out
    else:
        assert written
        assert (tmp_path / renderer.OUTPUT).exists()
        assert {path.relative_to(tmp_path).parts[0] for path in written} == {renderer.OUTPUT}


# ---------------------------------------------------------------------------------------------- parquet


def test_parquet_holds_every_raw_sample(folder: Path) -> None:
    profile = synthetic.profile()
    frame = pd.read_parquet(folder / "samples.parquet")
    assert len(frame) == sum(len(part.latency_s.samples) for part in profile.parts)
    for part in profile.parts:
        rows = frame[frame.fqn == part.fqn].sort_values("run")
        assert tuple(rows.seconds) == part.latency_s.samples
        assert set(rows.macs) == {part.macs}
    assert set(frame.backend) == {"fake"}


def test_without_pyarrow_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "asdm_prof.renderers.parquet")
    with pytest.raises(ValueError, match=r"'parquet' of renderers needs the package 'pyarrow'"):
        registry.load("asdm_prof.renderers", "parquet")
    assert parquet.OUTPUT == "samples.parquet"


# ---------------------------------------------------------------------------------------------- chrome trace


def test_the_trace_is_made_of_complete_events_that_nest(folder: Path) -> None:
    """Trace viewers nest events of a thread by time: of two that overlap, one must enclose the other."""
    events = read(folder / "trace.json")["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "M"] == ["process_name", "thread_name"]
    complete = [event for event in events if event["ph"] == "X"]
    for event in complete:
        assert {"name", "cat", "pid", "tid", "ts", "dur", "args"} <= event.keys()
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    opened: list[int] = []  # ends, in nanoseconds as a viewer rounds them
    for event in complete:
        start, end = round(1e3 * event["ts"]), round(1e3 * (event["ts"] + event["dur"]))
        while opened and opened[-1] <= start:
            opened.pop()
        assert not opened or end <= opened[-1], f"{event['name']} ends after what encloses it"
        opened.append(end)


def test_the_trace_has_every_part_with_its_time_and_macs(folder: Path) -> None:
    profile = synthetic.profile()
    events = {
        event["args"]["fqn"]: event for event in read(folder / "trace.json")["traceEvents"] if "fqn" in event["args"]
    }
    assert list(events) == [part.fqn for part in profile.parts]
    for part in profile.parts:
        event = events[part.fqn]
        assert round(1e3 * event["dur"]) == median_ns(profile, part.fqn)
        assert event["args"]["macs"] == part.macs
        assert event["args"]["params"] == part.params
        assert event["args"]["low_ms"] <= event["dur"] / 1e3 <= event["args"]["high_ms"]


def test_a_rest_below_nothing_takes_no_time() -> None:
    profile = synthetic.profile()
    other = profile.part("other")
    below = other.model_copy(update={"latency_s": other.latency_s.model_copy(update={"median": -1e-3})})
    profile = profile.model_copy(update={"glue": tuple(below if p == other else p for p in profile.glue)})
    assert all(event.get("dur", 0) >= 0 for event in chrome_trace.trace(profile)["traceEvents"])


# ---------------------------------------------------------------------------------------------- speedscope


def test_speedscope_follows_its_schema(folder: Path) -> None:
    """The required fields and types of speedscope's file format for an evented profile."""
    found = read(folder / "speedscope.json")
    assert found["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert isinstance(found["name"], str)
    assert isinstance(found["exporter"], str)
    frames = found["shared"]["frames"]
    assert all(set(frame) <= {"name", "file", "line", "col"} and isinstance(frame["name"], str) for frame in frames)
    assert 0 <= found["activeProfileIndex"] < len(found["profiles"])
    for profile in found["profiles"]:
        assert set(profile) == {"type", "name", "unit", "startValue", "endValue", "events"}
        assert profile["type"] == "evented"
        assert profile["unit"] in {"bytes", "microseconds", "milliseconds", "nanoseconds", "none", "seconds"}
        for event in profile["events"]:
            assert set(event) == {"type", "frame", "at"}
            assert event["type"] in {"O", "C"}
            assert 0 <= event["frame"] < len(frames)
            assert profile["startValue"] <= event["at"] <= profile["endValue"]


def test_speedscope_frames_open_and_close_like_brackets(folder: Path) -> None:
    (profile,) = read(folder / "speedscope.json")["profiles"]
    stack: list[int] = []
    at = profile["startValue"]
    for event in profile["events"]:
        assert event["at"] >= at, "events come in order of time"
        at = event["at"]
        if event["type"] == "O":
            stack.append(event["frame"])
        else:
            assert stack.pop() == event["frame"]
    assert stack == []
    assert at == profile["endValue"]


def test_speedscope_has_the_tree(folder: Path) -> None:
    profile = synthetic.profile()
    found = read(folder / "speedscope.json")
    names = [frame["file"] for frame in found["shared"]["frames"]]
    assert names == [node.name for _, node in tree_of(profile).walk()]
    opened = {e["frame"]: e["at"] for e in found["profiles"][0]["events"] if e["type"] == "O"}
    closed = {e["frame"]: e["at"] for e in found["profiles"][0]["events"] if e["type"] == "C"}
    for part in profile.parts:
        frame = names.index(part.fqn)
        assert closed[frame] - opened[frame] == median_ns(profile, part.fqn)


def test_hostile_names_are_made_harmless() -> None:
    profile = hostile_report().profile
    for text in (json.dumps(chrome_trace.trace(profile)), json.dumps(speedscope.flame(profile))):
        assert "\\u001b" not in text
        assert json.dumps(HOSTILE.replace("\x1b", "?")) in text
