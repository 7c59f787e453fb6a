"""What an output may replace: new names, empty folders and what the command itself wrote; never anything else."""

import errno
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import typer
from safetensors import SafetensorError

import asdm.cli
import asdm_prof.cli
from asdm.cli import options
from asdm.distill.logger import JsonlWriter
from asdm.models import single_file, student as students
from asdm.utils import console, inputs, io, locks, snapshots
from asdm.utils.cache import cache_folder
from tests.asdm_prof import synthetic
from tests.commands import files_in, refused

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
    graphs = folder_with(tmp_path / "graphs", "export.json", "schedule.json", "config.json")
    folder_with(graphs / "pass-0", "model.onnx", "model.onnx.data")
    io.check_replaceable(graphs, True, "export.json")
    io.check_replaceable(tmp_path / "new", False, MARKER)
    (tmp_path / "empty").mkdir()
    io.check_replaceable(tmp_path / "empty", False, MARKER)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("thesis.tex",), r"is not replaced: it has no build\.json, so it was not written by this command"),
        (("config.json", "diffusion_pytorch_model.safetensors"), r"it has no build\.json"),
        ((MARKER, "thesis.tex"), r"it holds thesis\.tex, which this command did not write"),
        ((MARKER, "notes.json"), r"it holds notes\.json, which"),
        ((MARKER, "my-merge.safetensors"), r"it holds my-merge\.safetensors, which"),
        ((MARKER, "README.md"), r"it holds README\.md, which"),
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


FILE, FOLDER = "in.safetensors", "model"
# Every command that has an output, with an input of it; FILE and FOLDER stand there.
READ = {
    "asdm-prof plan": f"--budget 0.8 --profile {FILE}",
    "asdm-prof frontier": f"--damage {FILE}",
    "asdm-prof schedule": f"--price {FILE}",
    "asdm-prof sensitivity": f"mini --profile {FILE}",
    "asdm-prof compare": f"{FILE} {FILE}",
    "asdm-prof validate": f"mini --profile {FILE}",
    "asdm-prof report": f"{FILE}",
    "asdm-prof profile": f"./{FILE}",
    "asdm-prof search": f"{FOLDER} --budget 0.8",
    "asdm slim": f"mini --budget 0.8 --data folder:{FOLDER}",
    "asdm build": f"a_sdm --stage1 {FOLDER}",
    "asdm distill": f"a_sdm --teacher {FOLDER}",
    "asdm distill-units": f"{FOLDER}",
    "asdm cache": f"folder:{FOLDER}",
    "asdm bench": f"--student ./{FILE}",
    "asdm generate": f"hello --lora {FILE}:0.5",
    "asdm export": f"{FOLDER} --lora {FILE}",
}


def with_an_output():
    found = []
    for program, app in (("asdm", asdm.cli.app), ("asdm-prof", asdm_prof.cli.app)):
        for name, command in typer.main.get_command(app).commands.items():
            options = {parameter.name for parameter in command.params}
            found += [(f"{program} {name}", "force" in options)] if "output" in options else []
    return found


@pytest.mark.parametrize(("command", "force"), with_an_output(), ids=lambda value: str(value))
def test_no_command_writes_over_its_input_or_to_a_dash(run, tmp_path, command, force):
    (tmp_path / FILE).write_text("mine")
    folder_with(tmp_path / FOLDER, "config.json")
    words = [*command.split(), *READ[command].split()]
    named = FOLDER if READ[command].endswith(FOLDER) or f"{FOLDER} --budget" in READ[command] else FILE
    for output in (named, str(tmp_path / named)):
        refused(run(*words, "-o", output, *["--force"] * force), f"{output} is an input of this command; name another")
    refused(run(*words, "-o", "-"), "- is not an output")
    assert files_in(tmp_path) == [FILE, f"{FOLDER}/config.json"]
    assert (tmp_path / FILE).read_text() == "mine"


def test_what_a_command_finds_by_itself_is_an_input_too(run, tmp_path):
    path = synthetic.profile().save(tmp_path / "reports" / "sd15" / "profile.json")
    before = path.read_bytes()
    found = run("asdm-prof", "plan", "--budget", "0.8", "-o", path, "--force")
    refused(found, "is an input of this command")
    named = ("--profile", "profile.json", "-o", path, "--force")
    refused(run("asdm-prof", "plan", "--budget", "0.8", *named), "is an input of this command")
    assert path.read_bytes() == before
    beside = run("asdm-prof", "plan", "--budget", "0.8", "--no-why", "--profile", path.parent, "-o", path.parent)
    assert beside.code == 0, beside.err
    assert files_in(path.parent) == ["plan.json", "profile.json"]


def test_a_preset_and_a_word_are_no_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a_sdm", "emoji", "trained"):
        folder_with(tmp_path / name)
    words = {"plan": "a_sdm", "data": "emoji", "teacher": "trained", "prompts": ["emoji"], "output": Path("a_sdm")}
    with inputs.of_command(options.read_by(words)):
        assert [Path(name).name for name in inputs.names()] == ["trained"]
    assert inputs.names() == [], "outside of a command"


# ---------------------------------------------------------------------------------------------- two processes


def test_of_two_that_measure_into_one_output_none_is_lost(tmp_path, capsys):
    first, second = synthetic.profile(), synthetic.profile(seed=1)
    path = first.save(tmp_path / "profile.json")  # while the second is being measured
    options.save_and_print(second, path, False, False, lambda: None)
    assert type(first).load(path) == first
    assert type(second).load(tmp_path / "profile-2.json") == second
    said = capsys.readouterr().err
    assert "profile.json was written by another process meanwhile; this result goes beside it" in said
    assert f"Wrote {tmp_path / 'profile-2.json'}" in said
    options.save_and_print(second, path, True, False, lambda: None)
    assert type(second).load(path) == second, "with --force"


def test_whoever_comes_second_by_a_moment_writes_beside(tmp_path):
    def write_a_file():
        with io.whole_file(tmp_path / "file") as file:
            file.write_text("second")
            (tmp_path / "file").write_text("first")

    def write_a_folder():
        with io.whole_folder(tmp_path / "folder") as folder:
            folder_with(folder / "inner", "second")
            folder_with(tmp_path / "folder", "first")

    for write, name in ((write_a_file, "file-2"), (write_a_folder, "folder-2")):
        with pytest.raises(ValueError, match=f"was written by another process meanwhile; what this one .*{name}"):
            write()
    assert files_in(tmp_path) == ["file", "file-2", "folder-2/inner/second", "folder/first"]
    assert ((tmp_path / "file").read_text(), (tmp_path / "file-2").read_text()) == ("first", "second")


def test_without_links_files_are_renamed(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert io.write_whole(tmp_path / "file", "x").read_text() == "x"
    assert files_in(tmp_path) == ["file"]


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


FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*_, **__):
    raise FULL


def a_log(path):
    writer = JsonlWriter(path, 0)
    writer._file.close()
    writer._file = SimpleNamespace(write=full)
    writer.write({"step": 1})


def a_folder(path):
    with io.whole_folder(path, needed=2_500_000):
        full()


@pytest.mark.parametrize(
    ("write", "patched", "room"),
    [
        (lambda path: io.write_whole(path, "x" * 1500), "write_bytes", "it needs 2 kB, and "),
        (lambda path: synthetic.plan().save(path), "write_bytes", "it needs [0-9]+ kB, and "),
        (a_folder, None, "it needs 3 MB, and "),
        (lambda path: io.make_folder(path), "mkdir", ""),
        (
            lambda path: snapshots.write(path, 1, {"a": {"b": torch.zeros(1000)}}, {}, 1),
            "write_text",
            "it needs 4 kB, and ",
        ),
        (lambda path: students.save(torch.nn.Linear(3, 5), None, None, path), None, "it needs 1 kB, and "),
        (lambda path: single_file.write(path, {"a": torch.zeros(10)}, {}), None, "it needs 1 kB, and "),
        (a_log, None, ""),
    ],
    ids=["file", "record", "folder", "mkdir", "checkpoint", "student", "single file", "log"],
)
def test_every_writer_says_which_file_needs_how_much_room(tmp_path, monkeypatch, write, patched, room):
    if patched:
        monkeypatch.setattr(Path, patched, full)
    monkeypatch.setattr(torch.nn.Linear, "save_pretrained", full, raising=False)
    monkeypatch.setattr(safetensors.torch, "save_file", full if not patched else safetensors.torch.save_file)
    with pytest.raises(ValueError, match=rf"cannot write .*x\S*: no .* \({room}[\d,]+ [kM]B are free there\)") as told:
        write(tmp_path / "x")
    assert str(tmp_path / "x") in str(told.value)


def test_a_writer_that_knows_nothing_of_it_is_told_in_one_sentence(monkeypatch, capsys):
    def act():
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/journal")

    monkeypatch.setattr(sys, "argv", ["asdm"])
    app = typer.Typer()
    app.command()(act)
    with pytest.raises(SystemExit) as left:
        console.run(app)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("Error: cannot write /tmp/journal: no space left on device (")


def test_without_a_home_the_setting_that_helps_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ASDM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(ValueError, match=r"cannot write .*/\.cache/asdm/onnx: .*\. Set ASDM_CACHE to a folder that"):
        io.make_folder(cache_folder("onnx"))

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(ValueError, match="there is no home folder to cache in; set ASDM_CACHE"):
        cache_folder("onnx")
