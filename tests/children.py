"""Commands in processes of their own that begin at once: forked from a server that has imported everything."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["asdm.cli", "asdm.cli.progress", "asdm_prof.search.search", "tests.children", "tests.warm"]
)


def start(
    words: Sequence[Any],
    told: Path,
    environment: Mapping[str, str] = {},
    file_bytes: int | None = None,
    program: str = "asdm",
    folder: Path | None = None,
) -> Any:
    """Begin `asdm WORDS`, or another `program`, in a folder; what it says goes to the file `told`.

    No file may grow beyond `file_bytes`.
    """
    everything = {**{k: v for k, v in os.environ.items() if k.startswith("ASDM")}, **environment}
    process = _SERVER.Process(
        target=_command, args=(program, [str(word) for word in words], str(told), everything, file_bytes, folder)
    )
    process.start()
    return process


def ended(process: Any, timeout: float = 600) -> int:
    """Wait for the end of a process; its exit code."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"the process did not end within {timeout} s")
    return int(process.exitcode)


def _command(
    program: str, words: list[str], told: str, environment: dict[str, str], file_bytes: int | None, folder: Path | None
) -> None:
    import torch

    module = importlib.import_module({"asdm": "asdm.cli", "asdm-prof": "asdm_prof.cli"}[program])

    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in a shell's background ignores
    with open(told, "ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    torch.set_num_threads(1)
    if folder:
        os.chdir(folder)
    sys.argv = [program, *words]
    module.main()
