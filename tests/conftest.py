"""How the suite is run: by several workers, those files first that take longest, and alone what times something."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from asdm.utils.locks import MachineLock

LOCK = pytest.StashKey[MachineLock]()

# Files with tests marked `serial`, which the workers of `make test` begin with, so that none waits for a long test; and
# those whose tests take longest, so that none is left for the end.
FIRST = (
    "asdm_prof/analysis/test_diff.py",
    "asdm_prof/planner/test_validate.py",
    "asdm_prof/profiler/test_profiler.py",
    "asdm_prof/renderers/test_browser.py",
    "asdm_prof/planner/test_frontier.py",
    "asdm/cli/slim/test_slim.py",
    "asdm/distill/test_faults.py",
    "asdm/unet/test_replacements.py",
    "asdm_prof/sensitivity/test_sensitivity.py",
    "asdm/distill/test_distill.py",
    "asdm_prof/search/test_search.py",
    "docs/test_blocks.py",
    "benchmarks/test_proof.py",
    "asdm/distill/test_distributed.py",
    "asdm/models/test_student.py",
    "asdm/models/test_export.py",
    "asdm/distill/test_more_steps.py",
    "asdm_prof/cli/test_cli.py",
    "asdm/cli/test_commands.py",
    "asdm/distill/test_pauses.py",
    "asdm_prof/renderers/test_renderers.py",
    "benchmarks/test_levers.py",
    "fuzz/test_fuzz.py",
    "asdm/distill/test_options.py",
    "asdm/models/test_sources.py",
    "asdm/distill/test_sdxl.py",
    "asdm_prof/sensitivity/test_racing.py",
    "asdm/measure/test_backends.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands the tests out to workers (`-n`) needs nothing of what they import."""
    if config.getoption("dist", "no") == "no":
        gc.disable()  # until everything is imported
        config.pluginmanager.import_plugin("tests.tiny")
        config.pluginmanager.import_plugin("tests.warm")
    folder = Path(tempfile.gettempdir(), f"asdm-tests-{config.rootpath.stat().st_ino}")
    folder.mkdir(exist_ok=True)
    config.stash[LOCK] = MachineLock(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collector would take a tenth of the suite's time to look through it."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 50, 1000)


@pytest.fixture(autouse=True, scope="module")
def _freeze_what_the_last_file_imported() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """While a test marked `serial` runs, the other workers wait."""
    lock = item.config.stash[LOCK]
    with lock.timing() if item.get_closest_marker("serial") else lock.working():
        return (yield)
