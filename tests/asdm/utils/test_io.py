"""Files and folders are written whole or not at all, with one clear sentence on error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asdm.utils import io
from asdm.utils.io import whole_folder


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
