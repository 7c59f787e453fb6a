"""No file and no function of the packages grows beyond what is read in one go."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 450, 80
LONG = {"asdm/distill/trainer.py:train_stage"}  # the training loop, which is read from top to bottom
FILES = {
    str(path.relative_to(ROOT)): path for package in ("asdm", "asdm_prof") for path in ROOT.glob(f"{package}/**/*.py")
}


def lengths(name: str) -> dict[str, int]:
    """Every function of a file, and its lines."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_so_are_its_functions(name: str) -> None:
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{name} has {lines} lines: a file that has become a menu of siblings is a folder"
    assert not {function: n for function, n in lengths(name).items() if n > FUNCTION_LINES and function not in LONG}


def test_what_may_be_long_is_long() -> None:
    for function in LONG:
        assert lengths(function.partition(":")[0])[function] > FUNCTION_LINES
