"""Files are written whole or not at all, and read with one clear sentence on error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from asdm.utils import io
from asdm.utils.io import Record, whole_folder


class Note(Record, schema="asdm.note/1"):
    text: str
    seconds: float = 0.0


def refuse(*_args, **_kwargs):
    raise PermissionError(13, "Permission denied")


# ---------------------------------------------------------------------------------------------- write_whole


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path):
    path = io.write_whole(tmp_path / "a" / "b" / "note.txt", "whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["note.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_bytes_are_written_as_they_are(tmp_path):
    assert io.write_whole(tmp_path / "note.bin", b"\x00\xff\r\n").read_bytes() == b"\x00\xff\r\n"


def test_a_file_is_not_overwritten_unless_forced(tmp_path):
    path = io.write_whole(tmp_path / "note.txt", "old")
    with pytest.raises(ValueError, match=r"note\.txt exists; .*--force"):
        io.write_whole(path, "new")
    assert path.read_text() == "old"
    assert io.write_whole(path, "new", force=True).read_text() == "new"


def test_a_rename_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = io.write_whole(tmp_path / "note.txt", "old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ValueError, match=r"^cannot write .*note\.txt: permission denied\.$"):
        io.write_whole(path, "new", force=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("note.txt", "old")]


@pytest.mark.parametrize(("call", "force"), [("link", False), ("replace", True)])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, call, force):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        io.write_whole(tmp_path / "note.txt", "new", force)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(io.tempfile, "mkstemp", refuse)
    with pytest.raises(ValueError, match=r"^cannot write .*note\.txt: permission denied\.$"):
        io.write_whole(tmp_path / "note.txt", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [io.write_whole, lambda path, _: io.check_writable(path)])
def test_a_path_below_a_file_cannot_be_written(tmp_path, write):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ValueError, match=r"^cannot write .*file.*: .*(not a directory|file exists)\.$"):
        write(tmp_path / "file" / "note.txt", "new")
    assert (tmp_path / "file").read_text() == "a file"


def test_checking_first_creates_nothing(tmp_path):
    io.check_writable(tmp_path / "a" / "b" / "note.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "note.txt").write_text("old")
    with pytest.raises(ValueError, match="--force"):
        io.check_writable(tmp_path / "note.txt")
    io.check_writable(tmp_path / "note.txt", force=True)
    assert (tmp_path / "note.txt").read_text() == "old"


# ---------------------------------------------------------------------------------------------- whole_folder


def test_a_folder_takes_its_name_when_it_is_full(tmp_path):
    with io.whole_folder(tmp_path / "runs" / "out") as folder:
        (folder / "one.txt").write_text("1")
        assert not (tmp_path / "runs" / "out").exists()
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "runs",
        "runs/out",
        "runs/out/one.txt",
    ]


def test_an_error_inside_leaves_no_folder(tmp_path):
    def half_way():
        with io.whole_folder(tmp_path / "out") as folder:
            (folder / "one.txt").write_text("1")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half_way()
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_keeps_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with pytest.raises(ValueError, match="--force"), io.whole_folder(tmp_path / "out"):
        pytest.fail("an existing folder was taken")
    with pytest.raises(RuntimeError), io.whole_folder(tmp_path / "out", force=True):
        raise RuntimeError
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["out", "out/old.txt"]


# ---------------------------------------------------------------------------------------------- records


def test_a_record_comes_back_with_its_hash(tmp_path):
    note = Note(text="naïve – ½", seconds=0.1 + 0.2)
    again = Note.load(note.save(tmp_path / "note.json"))
    assert again == note
    assert again.sha256() == note.sha256() != Note(text="other").sha256()
    assert json.loads((tmp_path / "note.json").read_text())["schema"] == "asdm.note/1"


def test_hashes_do_not_depend_on_the_order_of_keys():
    assert io.sha256_of({"a": 1, "b": [2]}) == io.sha256_of({"b": [2], "a": 1}) != io.sha256_of({"a": 1})


def test_a_newer_file_with_more_fields_is_read(tmp_path):
    path = tmp_path / "note.json"
    path.write_text('{"schema": "asdm.note/1", "text": "t", "mood": "good"}')
    assert Note.load(path) == Note(text="t")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"schema": "asdm.note/1",\n "text": "t', r"note\.json is not valid JSON: .* at line 2, column 10\.$"),
        ("", r"note\.json is not valid JSON: .* at line 1"),
        ('{"schema": "asdm.note/2", "text": "t"}', r"note\.json has schema asdm\.note/2.*reads asdm\.note/1.*upgrade"),
        ('{"schema": "asdm.plan/1"}', r"note\.json has schema 'asdm\.plan/1'; expected 'asdm\.note/1'\.$"),
        ("{}", r"note\.json has schema None; expected 'asdm\.note/1'\.$"),
        ("[1, 2]", r"note\.json has schema None"),
        ('{"schema": "asdm.note/1", "text": 7}', r"note\.json: text: .*, got 7\.$"),
        ('{"schema": "asdm.note/1"}', r"note\.json: text: field required\.$"),
        ('{"schema": "asdm.note/1", "text": "t", "seconds": 1e999}', r"note\.json: seconds: .*finite number"),
        ('{"schema": "asdm.note/1", "text": "t", "seconds": NaN}', r"has the value NaN, which is not a number"),
        (
            '{"schema": "asdm.note/1", "text": "t", "seconds": -Infinity}',
            r"has the value -Infinity, which is not a number",
        ),
    ],
)
def test_a_broken_record_is_refused_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "note.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        Note.load(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        Note.load(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="is a folder; name a JSON file"):
        Note.load(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"picture\.png is not a text file"):
        Note.load(tmp_path / "picture.png")


def test_nan_never_gets_into_a_record():
    with pytest.raises(ValueError, match="finite"):
        Note(text="t", seconds=float("nan"))


# ---------------------------------------------------------------------------------------------- runs


@pytest.fixture
def reports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["old", "new"]):
        path = io.write_whole(io.REPORTS / name / "profile.json", name)
        os.utime(path, (1000 + age, 1000 + age))
    return tmp_path / "reports"


def test_a_bare_name_is_the_newest_file_of_the_reports(reports):
    assert io.newest("profile.json").read_text() == "new"
    assert io.newest("bench.json") is None
    assert io.find_input(io.Path("profile.json")).read_text() == "new"
    assert io.find_input(io.Path("bench.json")) == io.Path("bench.json")
    assert io.find_input(io.Path("here/profile.json")) == io.Path("here/profile.json")


def test_the_newest_file_is_the_one_made_last_whenever_it_was_copied(reports):
    """A clone or a copy writes files in any order; files without a time, and broken ones, go by that order."""
    made = {"b": '{"created_utc": "2026-02-01"}', "a": '{"created_utc": "2026-01-01"}', "d": "{}", "c": "{"}
    for name, text in made.items():
        (reports / name).mkdir(parents=True)
        (reports / name / "bench.json").write_text(text)
    for i, name in enumerate("bacd"):
        os.utime(reports / name / "bench.json", (i, i))
    assert [path.parent.name for path in io.newest_first(io.REPORTS.glob("*/bench.json"))] == ["b", "a", "d", "c"]
    assert io.newest("bench.json") == io.REPORTS / "b" / "bench.json"


def test_a_file_that_is_here_comes_before_the_reports(reports):
    (reports.parent / "profile.json").write_text("here")
    assert io.find_input(io.Path("profile.json")).read_text() == "here"


def test_every_run_gets_a_folder_of_its_own(reports):
    first = io.run_folder("owner/name", "eager", "fp32")
    first.mkdir(parents=True)
    second = io.run_folder("owner/name", "eager", "fp32")
    assert first.parent == second.parent == io.REPORTS
    assert first.name.startswith("owner_name-eager-fp32-")
    assert first != second
    assert not second.exists()


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    """The new folder takes the old one's place or nothing changes."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "weights").write_text("old")
    real = os.replace

    def fails_for_the_new_one(source, target):
        if (Path(source) / "weights").exists() and (Path(source) / "weights").read_text() == "new":
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(ValueError, match="permission denied"), whole_folder(tmp_path / "student", force=True) as folder:
        (folder / "weights").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "weights").read_text() == "old"


@pytest.mark.parametrize(
    ("source", "name"),
    [("sd15", "sd15"), ("models/mine/", "mine"), ("models/mine/config.json", "mine"), ("ssd1b.json", "ssd1b")],
)
def test_a_run_is_called_after_what_it_ran(source, name):
    assert io.short_name(source) == name


def test_what_json_cannot_be_is_named(tmp_path):
    deep, digits, pipe, mark = (tmp_path / name for name in ("deep", "digits", "pipe", "mark"))
    deep.write_text("[" * 100_000)
    digits.write_text("1" * 5000)
    os.mkfifo(pipe)
    mark.write_bytes(b"\xef\xbb\xbf{}")
    for file, words in ((deep, "is nested too deeply"), (digits, "4300"), (pipe, "is not a file")):
        with pytest.raises(ValueError, match=words) as caught:
            io.read_json(file)
        assert str(file) in str(caught.value)
    assert io.read_json(mark) == {}
