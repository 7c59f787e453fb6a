"""What is timed has its machine alone: real processes and real locks."""

from __future__ import annotations

import errno
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from asdm.utils import locks
from asdm.utils.locks import MachineLock

SERVER = multiprocessing.get_context("spawn")


def work(folder: str, steps: Any, go_on: Any) -> None:
    """Step after step, with a pause between two."""
    with MachineLock(Path(folder)).working() as pause:
        while go_on.is_set():
            steps.value += 1
            time.sleep(0.001)
            pause()


@pytest.fixture
def two_workers(tmp_path: Path) -> Any:
    go_on, steps = SERVER.Event(), [SERVER.Value("q", 0, lock=False) for _ in range(2)]
    go_on.set()
    processes = [SERVER.Process(target=work, args=(str(tmp_path), one, go_on)) for one in steps]
    for process in processes:
        process.start()
    while not all(one.value for one in steps):
        time.sleep(0.005)
    yield steps, processes
    go_on.clear()
    for process in processes:
        process.join(30)
        assert process.exitcode is not None


@pytest.mark.serial
def test_nobody_works_while_something_is_timed_and_all_go_on_after_it(tmp_path: Path, two_workers: Any) -> None:
    steps, _ = two_workers
    host = MachineLock(tmp_path)
    for _ in range(3):
        began = time.monotonic()
        with host.timing():
            assert time.monotonic() - began < 5, "workers who take turns kept the one who times waiting"
            before = [one.value for one in steps]
            time.sleep(0.1)
            assert [one.value for one in steps] == before
        while [one.value for one in steps] == before:
            time.sleep(0.001)


def test_a_killed_worker_keeps_nobody_waiting(tmp_path: Path, two_workers: Any) -> None:
    _, processes = two_workers
    processes[0].kill()
    with MachineLock(tmp_path).timing():
        pass


def test_two_never_time_at_once(tmp_path: Path) -> None:
    inside, most = [], []

    def timed() -> None:
        with MachineLock(tmp_path).timing():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=timed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_where_there_are_no_locks_the_setting_that_helps_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = MachineLock(tmp_path)

    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock", refuse)
    helps = rf"{tmp_path} cannot be locked \(no locks available\); set TMPDIR to a folder on a local disk\.$"
    for enter in (machine.working, machine.timing):
        with pytest.raises(ValueError, match=helps), enter():
            pass
    with pytest.raises(ValueError, match=r"cannot be locked \(no such file or directory\); set TMPDIR to"):
        MachineLock(tmp_path / "gone")
