"""Stages for the tests of `benchmarks.gpu`, whose processes start without torch."""

import os
import signal

from benchmarks.gpu.context import Context, Part, Refused
from benchmarks.gpu.records import SuiteResult


def _passed() -> SuiteResult:
    return SuiteResult(passed=1, failed=0, skipped=0, seconds=0.5, failures={})


def _die() -> SuiteResult:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _refuse() -> SuiteResult:
    raise Refused("this needs a GPU.")


def _fail() -> SuiteResult:
    raise ValueError("batch must be at least 1, got 0.\nmore")


def _break() -> SuiteResult:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def killed(context: Context) -> list[Part]:
    """The process dies in the middle one."""
    return [Part("before", _passed), Part("dies", _die), Part("after", _passed)]


def made_of_others(context: Context) -> list[Part]:
    """`both` is made of the first two, the second of which fails."""
    return [Part("one", _passed), Part("two", _fail), Part("both", _passed, ("one", "two")), Part("other", _passed)]


def failing(context: Context) -> list[Part]:
    """One of every end."""
    return [Part("refuses", _refuse), Part("fails", _fail), Part("breaks", _break), Part("after", _passed)]


def unlisted(context: Context) -> list[Part]:
    """A stage that cannot say what it consists of."""
    raise ImportError("no module named diffusers")
