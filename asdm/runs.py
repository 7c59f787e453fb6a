"""A folder that one run owns: what it is being trained for, its lock, and its log."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from asdm.checkpoints import clear_leftovers
from asdm.files import check_writable, make_folder, utc_now, write_whole
from asdm.results import DistillRun

RUN, LOG, LOCK = "run.json", "log.jsonl", "run.lock"


def claim(folder: Path, wanted: DistillRun, force: bool = False, amend: bool = False, step: int = 0) -> DistillRun:
    """Take a folder for a run, or go on in one that is this run's own.

    Raises ValueError for what is not a run's folder, for another run's, naming the first thing that differs, and for
    other tuning without `amend`.
    """
    refuse_foreign(folder)
    if not (folder / RUN).exists():
        return _write(folder, wanted)
    found = DistillRun.load(folder / RUN)
    if force:
        _clear(folder)
        return _write(folder, wanted)
    for key, value in wanted.identity.items():
        if found.identity.get(key) != value:
            raise ValueError(_another(folder, key, found.identity.get(key), value))
    changed = {key: value for key, value in wanted.tuning.items() if found.tuning.get(key) != value}
    if not changed:
        return found
    if not amend:
        key = next(iter(changed))
        raise ValueError(
            f"{folder} is trained with {key} {_shown(found.tuning.get(key))}, and not {_shown(changed[key])}; give the "
            "same, add --amend to go on with the new one, or name another output."
        )
    note = {"from_step": step, "created_utc": utc_now(), "was": {key: found.tuning.get(key) for key in changed}}
    now = found.model_copy(update={"tuning": wanted.tuning, "amended": (*found.amended, note)})
    return _write(folder, now)


def refuse_foreign(folder: Path) -> None:
    """Raises ValueError for a file, or a folder with other things than a run in it."""
    if not folder.exists() or (folder / RUN).exists():
        return
    if not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"{folder} exists and holds no run to go on with; name another output.")


def _another(folder: Path, key: str, found: Any, wanted: Any) -> str:
    if key == "teacher_sha256":
        return (
            f"the teacher has changed since {folder} was begun (its weights hash to {str(wanted)[:12]}, and not "
            f"{str(found)[:12]}); put the teacher back, or name another output."
        )
    return (
        f"{folder} holds another run: its {key} is {_shown(found)}, and not {_shown(wanted)}; name another output, "
        "or add --force to throw that run away."
    )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _write(folder: Path, run: DistillRun) -> DistillRun:
    make_folder(folder)
    write_whole(folder / RUN, run.to_json(), force=True)
    return run


def _clear(folder: Path) -> None:
    """Empty a run's folder, its name plate last, so that a stop in between leaves a run's folder."""
    for path in [path for path in folder.iterdir() if path.name not in (RUN, LOCK)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else trains in `folder` meanwhile; a killed process leaves no lock. Raises ValueError where one does."""
    check_writable(folder / LOCK, force=True)
    make_folder(folder)
    with (folder / LOCK).open("a+") as lock:
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ValueError(
                f"{folder} is being trained by process {lock.read().strip() or '?'}; wait for it."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        clear_leftovers(folder)
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it
                (folder / LOCK).unlink()
                folder.rmdir()


# ---------------------------------------------------------------------------------------------- log


class Log:
    """One JSON line a step, each written at once; lines of steps that will be taken again are dropped."""

    def __init__(self, path: Path, after_step: int) -> None:
        self.path = path
        write_whole(path, "".join(f"{line}\n" for line in _lines(path) if json.loads(line)["step"] <= after_step), True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}.") from None

    def close(self) -> None:
        with suppress(OSError):  # a full disk, said already
            self._file.close()


def _lines(path: Path) -> Iterator[str]:
    """Whole lines; the last may have been cut by a kill."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.endswith("}"):
            yield line


def read_log(path: Path) -> list[dict[str, Any]]:
    """Every line of a run's log."""
    return [json.loads(line) for line in _lines(path)]
