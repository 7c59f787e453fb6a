"""What an output may replace: new names, empty folders and what the command itself wrote; never anything else."""

import errno
import os
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from asdm.utils import io, locks
from tests.commands import refused

MARKER = "build.json"


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("x")
    return path


def test_forced_a_folder_is_replaced_where_it_was_written_by_the_command(tmp_path):
    ours = folder_with(tmp_path / "ours", MARKER, "plan.json", "config.json", "diffusion_pytorch_model.safetensors")
    io.check_replaceable(ours, True, MARKER)
    with pytest.raises(ValueError, match="ours exists; name another output or add --force"):
        io.check_replaceable(ours, False, MARKER)
    io.check_replaceable(tmp_path / "new", False, MARKER)
    (tmp_path / "empty").mkdir()
    io.check_replaceable(tmp_path / "empty", False, MARKER)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("thesis.tex",), r"is not replaced: it has no build\.json, so it was not written by this command"),
        (("config.json", "diffusion_pytorch_model.safetensors"), r"it has no build\.json"),
        ((MARKER, "thesis.tex"), r"it holds thesis\.tex, which this command did not write"),
    ],
)
def test_anything_else_is_not_replaced(tmp_path, names, words):
    folder = folder_with(tmp_path / "folder", *names)
    with pytest.raises(ValueError, match=words):
        io.check_replaceable(folder, True, MARKER)


def test_an_input_and_where_one_stands_are_not_replaced(tmp_path, monkeypatch):
    ours = folder_with(tmp_path / "ours", MARKER)
    for given in (ours, folder_with(ours / "plan.json.d", "x") / "x"):
        with pytest.raises(ValueError, match="is or holds the input"):
            io.check_replaceable(ours, True, MARKER, (None, "sd15", str(given)))
    monkeypatch.chdir(ours)
    for name in (".", "..", str(ours)):
        with pytest.raises(ValueError, match="is the working directory or above it"):
            io.check_replaceable(Path(name), True, MARKER)
    assert (ours / MARKER).exists()


@pytest.mark.parametrize(
    "words",
    [
        ("asdm", "build", "a_sdm", "--teacher", "teacher", "--force", "-o", "teacher"),
        ("asdm", "build", "a_sdm", "--teacher", "mini", "--force", "-o", "."),
        ("asdm", "build", "a_sdm", "--teacher", "mini", "--force", "-o", "/dev/null"),
        ("asdm", "build", "a_sdm", "--teacher", "mini", "-o", "-"),
        ("asdm", "export", "teacher", "--to", "diffusers", "--force", "-o", "teacher"),
        ("asdm-prof", "profile", "mini", "--backend", "fake", "-o", "-"),
        ("asdm-prof", "profile", "mini", "--backend", "fake", "--force", "-o", "/dev/null"),
    ],
    ids=" ".join,
)
def test_commands_leave_everything_as_it_was(run, tmp_path, tiny_pipeline, words):
    (tmp_path / "teacher").symlink_to(tiny_pipeline)
    before = sorted(path.name for path in tiny_pipeline.rglob("*"))
    refused(run(*words))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    assert sorted(path.name for path in tiny_pipeline.rglob("*")) == before
    assert Path("/dev/null").is_char_device()


# ---------------------------------------------------------------------------------------------- links and rights


def test_a_link_leads_to_what_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "file.json")  # which does not exist yet
    io.write_whole(tmp_path / "link.json", "1")
    io.write_whole(tmp_path / "link.json", "2", force=True)
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real" / "file.json").read_text() == "2"
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "file.json")
    with pytest.raises(ValueError, match=r"it is a link to .*gone/file\.json, whose folder does not exist"):
        io.check_writable(tmp_path / "nowhere")


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    folder = folder_with(tmp_path / "mounted")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    with pytest.raises(ValueError, match="it is a mount point, which cannot be replaced; name a folder in it"):
        io.check_replaceable(folder, True, MARKER)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_the_users_umask_holds(tmp_path, mask, file, folder):
    before = os.umask(mask)
    try:
        io.write_whole(tmp_path / "file", "x")
        with io.whole_folder(tmp_path / "folder") as temporary:
            (temporary / "inner").write_text("x")
    finally:
        os.umask(before)
    rights = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder", "folder/inner")}
    assert rights == {"file": file, "folder": folder, "folder/inner": file}


def test_a_file_system_without_rights_is_written_to(tmp_path, monkeypatch):
    def chmod(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)
    assert io.write_whole(tmp_path / "file", "x").read_text() == "x"


@pytest.mark.parametrize("command", ["the same", "another"])
def test_what_a_killed_replacement_left_aside_comes_back(tmp_path, monkeypatch, command):
    """Killed between its two renames, a replacement leaves the old folder beside an empty name."""
    old = tmp_path / "student"
    old.mkdir()
    (old / "weights").write_text("a week's work")
    renames = []

    def dies(source, target):
        if renames:
            raise KeyboardInterrupt
        renames.append(rename(source, target))

    rename = os.replace
    new = tmp_path / ".student.abcdefgh"
    new.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            io._swap(new, old)
    assert not old.exists()
    for left in tmp_path.iterdir():
        os.utime(left, (time.time() - 2 * io.YOUNG_S,) * 2)
    if command == "the same":
        with io.whole_folder(old, force=True):
            assert (old / "weights").read_text() == "a week's work", "until the new one is whole"
    else:
        with pytest.raises(ValueError, match="exists"):
            io.check_writable(old)
        assert (old / "weights").read_text() == "a week's work"
        with io.whole_folder(tmp_path / "student", force=True):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path, monkeypatch):
    dead, fresh, living = (tmp_path / f".x.json.{name}" for name in ("abcdefgh", "ijklmnop", "qrstuvwx"))
    other = tmp_path / ".y.json.abcdefgh"
    for path in (dead, fresh, other):
        path.write_text("half")
    (living / "model").mkdir(parents=True)
    for path in (dead, living, other):
        os.utime(path, (time.time() - 2 * io.YOUNG_S,) * 2)
    handle = locks.open_lock(living)
    assert locks.lock(handle, shared=True)
    io.write_whole(tmp_path / "x.json", "whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {fresh.name, living.name, other.name, "x.json"}
    os.close(handle)  # its process ends
    monkeypatch.setattr(locks, "fcntl", None)  # as on a system without locks, where age decides
    io.write_whole(tmp_path / "x.json", "whole", force=True)
    assert living.exists()
    os.utime(living, (time.time() - 2 * io.STALE_S,) * 2)
    io.write_whole(tmp_path / "x.json", "whole", force=True)
    assert not living.exists()


def test_what_is_being_written_is_locked(tmp_path):
    with io.whole_file(tmp_path / "file") as file, io.whole_folder(tmp_path / "folder") as folder:
        assert not locks.is_free(file)
        assert not locks.is_free(folder)
    assert locks.is_free(tmp_path / "file")
    assert locks.is_free(tmp_path / "folder")


# ---------------------------------------------------------------------------------------------- disks and homes


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
    ],
)
def test_a_full_disk_names_the_file_and_the_room(tmp_path, error):
    words = r"cannot write .*/a/b: no space left on device \([\d,]+ MB are free there\)"
    with pytest.raises(ValueError, match=words), io.disk_errors(tmp_path / "a" / "b"):
        raise error
    with pytest.raises(FileNotFoundError), io.disk_errors(tmp_path):  # not the output's disk
        raise FileNotFoundError(errno.ENOENT, "No such file")


def test_without_a_home_the_setting_that_helps_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ASDM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(ValueError, match=r"cannot write .*/\.cache/asdm/onnx: .*\. Set ASDM_CACHE to a folder that"):
        io.make_folder(io.cache_folder("onnx"))

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(ValueError, match="there is no home folder to cache in; set ASDM_CACHE"):
        io.cache_folder("onnx")
