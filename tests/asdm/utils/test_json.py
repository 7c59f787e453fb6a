"""What any command writes as JSON is JSON: no NaN and no infinity, which other readers refuse."""

import ast
from pathlib import Path

import pytest

from asdm.utils.record import sha256_of

ROOT = Path(__file__).parents[3]
READ_BACK = {"asdm/models/loading.py", "asdm/measure/backends/_onnx.py", "asdm_prof/sensitivity/variants.py"}
SHOWN = {"asdm/utils/record.py:brief"}  # a value in an error message


def dumps() -> list[tuple[str, str, ast.Call]]:
    """(file, function, call) of every `json.dump` and `json.dumps`."""
    found = []
    for path in sorted(
        path for package in ("asdm", "asdm_prof", "benchmarks") for path in (ROOT / package).rglob("*.py")
    ):
        file = str(path.relative_to(ROOT))
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                    found.append((file, function.name, node))
    return found


def test_every_writer_refuses_what_json_lacks():
    calls = dumps()
    assert len(calls) > 20
    lax = {
        f"{file}:{function}"
        for file, function, call in calls
        if file not in READ_BACK and not any(ast.unparse(word) == "allow_nan=False" for word in call.keywords)
    }
    assert lax == SHOWN


def test_a_hash_of_no_number_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_of({"x": float("nan")})
