"""Files that were changed by accident: 200 seeded mutations of each kind are read, or refused in one sentence.

`make fuzz` does a hundred thousand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import files_in
from tests.fuzz.kinds import KINDS, Kind, prepare
from tests.fuzz.run import MOST_S, OURS, attempt, is_sentence, original

MUTATIONS, USED = 200, 100  # of these, each USED-th is used as commands do, which takes longer than reading


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder)
        yield folder


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore")
def test_mutations_are_read_or_refused(kind: Kind, root: Path, capfd: Any) -> None:
    with original(kind, root) as content:
        (root / kind.place).write_bytes(content.raw)
        kind.use(root, kind.read(root))  # as it is, it serves
        before = files_in(root)
        for number in range(MUTATIONS):
            began = time.process_time()
            fault = attempt(kind, root, content, number, number % USED == 1)
            assert not fault, f"{kind.name} {number}: {fault}"
            assert time.process_time() - began < MOST_S, f"{kind.name} {number} hangs"
        assert files_in(root) == before


def test_what_a_builtin_raises_in_our_code_is_no_sentence() -> None:
    """Only a `raise` of ours is; `float()` and numpy raise in the same frames."""
    builtin = compile("float('x')", f"{OURS[0]}one.py", "exec")
    ours = compile("raise ValueError('one.py has x.')", f"{OURS[0]}one.py", "exec")
    for code, told in ((builtin, False), (ours, True)):
        with pytest.raises(ValueError, match="x") as caught:
            exec(code)
        assert is_sentence(caught.value) == told


def test_a_unit_that_took_no_time_is_drawn(root: Path) -> None:
    kind = next(kind for kind in KINDS if kind.name == "profile")
    with original(kind, root) as content:
        share = content.content["units"][0]["share"]
        share["low"] = share["median"] = 0.0
        (root / kind.place).write_bytes(kind.encode(content.content))
        kind.use(root, kind.read(root))


def test_nonsense_is_refused(root: Path) -> None:
    """One value of nonsense each, in files that are JSON still."""
    for name, way, value, words in NONSENSE:
        kind = next(kind for kind in KINDS if kind.name == name)
        with original(kind, root) as content:
            parent = content.content
            for key in way[:-1]:
                parent = parent[key]
            parent[way[-1]] = value
            (root / kind.place).write_bytes(kind.encode(content.content))
            with pytest.raises(ValueError, match=words):
                kind.read(root)


NONSENSE: list[tuple[str, tuple[Any, ...], Any, str]] = [
    ("profile", ("whole", "latency_s", "median"), -1.0, "got -1.0"),
    (
        "profile",
        ("units", 0, "latency_s"),
        {"median": 0.0, "low": 0.0, "high": 0.0, "samples": []},
        "must be above 0, got 0",
    ),
    ("profile", ("units", 0, "share", "median"), 5.0, "must be from 0 to about 1, got 5.0"),
    ("profile", ("units", 0, "share", "low"), 0.9, "from low to high"),
    ("profile", ("units", 0, "share", "high"), 2e4, "the interval of a share goes from .* to 2e\\+04"),
    ("profile", ("units", 0, "latency_s", "samples"), [1.0], "all parts must have a sample of every run"),
    ("profile", ("units", 0, "params"), 0, "must have parameters and MACs, got 0"),
    ("profile", ("topology", "units"), [], "must stand both in the topology and among the units"),
    ("profile", ("dtype",), "int3", "should be 'fp32', 'bf16' or 'fp16'"),
    ("profile", ("whole", "latency_s", "median"), float("nan"), "NaN, which is not a number in JSON"),
    ("damage", ("edits", 0, "damage", "value"), -1e6, "from low to high|cannot be negative"),
    ("damage", ("pairs",), [{"first": 0, "second": 10**6, "damage": 0.0}], "a pair is of edits 0 and 1000000"),
    ("validate", ("correction", "factors"), {"remove_unit": -100.0}, "greater than or equal to -10, got -100.0"),
    ("bench", ("students", 0, "unet_latency_ratio"), {"median": 1e9, "low": 1e9, "high": 1e9}, "at most 10000"),
    ("bench", ("drawings", 0, "students"), [], "a drawing must be by all"),
    ("search", ("metric",), "beauty", "has no beauty, by which students are ranked"),
    ("compare", ("spearman", 0), [1.0], "one for each profile"),
    ("steps-damage", ("gains",), [1.0], "gains must have a value for each of"),
    ("vae config", ("layers_per_block",), 2000, "layers_per_block must be at most 64, got 2000"),
    ("text encoder config", ("num_hidden_layers",), 10**6, "num_hidden_layers must be at most 200, got 1000000"),
    ("text encoder config", ("attn_implementation",), "someone/kernel", "'someone/kernel' is not supported"),
    ("cache", ("shards", 0, "file"), "../elsewhere", "is missing or damaged"),
]
