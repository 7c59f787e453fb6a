"""Every run has a folder of its own, and a bare name is the newest file in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asdm.utils.io import write_whole
from asdm.utils.runs import REPORTS, find_input, newest, newest_first, run_folder, short_name


@pytest.fixture
def reports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["old", "new"]):
        path = write_whole(REPORTS / name / "profile.json", name)
        os.utime(path, (1000 + age, 1000 + age))
    return tmp_path / "reports"


def test_a_bare_name_is_the_newest_file_of_the_reports(reports):
    assert newest("profile.json").read_text() == "new"
    assert newest("bench.json") is None
    assert find_input(Path("profile.json")).read_text() == "new"
    assert find_input(Path("bench.json")) == Path("bench.json")
    assert find_input(Path("here/profile.json")) == Path("here/profile.json")


def test_a_folder_of_the_reports_is_never_meant(reports):
    """A student that was once built there does not take its preset's name."""
    (reports / "students" / "a_sdm").mkdir(parents=True)
    assert newest("a_sdm") is None
    assert find_input(Path("a_sdm")) == Path("a_sdm")


def test_the_newest_file_is_the_one_made_last_whenever_it_was_copied(reports):
    """A clone or a copy writes files in any order; files without a time, and broken ones, go by that order."""
    made = {"b": '{"created_utc": "2026-02-01"}', "a": '{"created_utc": "2026-01-01"}', "d": "{}", "c": "{"}
    for name, text in made.items():
        (reports / name).mkdir(parents=True)
        (reports / name / "bench.json").write_text(text)
    for i, name in enumerate("bacd"):
        os.utime(reports / name / "bench.json", (i, i))
    assert [path.parent.name for path in newest_first(REPORTS.glob("*/bench.json"))] == ["b", "a", "d", "c"]
    assert newest("bench.json") == REPORTS / "b" / "bench.json"


def test_a_file_that_is_here_comes_before_the_reports(reports):
    (reports.parent / "profile.json").write_text("here")
    assert find_input(Path("profile.json")).read_text() == "here"


def test_every_run_gets_a_folder_of_its_own(reports):
    first = run_folder("owner/name", "eager", "fp32")
    first.mkdir(parents=True)
    second = run_folder("owner/name", "eager", "fp32")
    assert first.parent == second.parent == REPORTS
    assert first.name.startswith("owner_name-eager-fp32-")
    assert first != second
    assert not second.exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [("sd15", "sd15"), ("models/mine/", "mine"), ("models/mine/config.json", "mine"), ("ssd1b.json", "ssd1b")],
)
def test_a_run_is_called_after_what_it_ran(source, name):
    assert short_name(source) == name
