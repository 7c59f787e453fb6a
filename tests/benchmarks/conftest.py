"""What a fresh process would do, done here; that one is really fresh is the subject of `test_script.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from asdm.measure.machine import KEEP_MEMORY


@pytest.fixture
def fresh_processes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns are run in this process, with the environment that a fresh one gets."""

    def run_here(function: Callable[..., Any], *arguments: Any, keep_memory: bool) -> Any:
        with monkeypatch.context() as patch:
            for name, value in KEEP_MEMORY.items() if keep_memory else ():
                patch.setitem(os.environ, name, value)
            return function(*arguments)

    monkeypatch.setattr("benchmarks.script.in_fresh_process", run_here)
