"""Records of runs: what they have in common is said once, and files that are there already stay as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import asdm_prof
from asdm.records.bench import BenchResult
from asdm.records.measurement import UNetRun
from asdm.utils.record import sha256_of
from asdm_prof.records import Profile, Validation, kinds
from tests.asdm_prof import synthetic

ROOT = Path(__file__).parents[3]
REPORTS = ROOT / "reports"
KINDS: list[type[UNetRun]] = [Profile, BenchResult, Validation]
BY_SCHEMA = {kind.SCHEMA: kind for kind in KINDS}
COMMITTED = [
    path for path in sorted(REPORTS.glob("*/*.json")) if json.loads(path.read_text()).get("schema") in BY_SCHEMA
]


def test_there_are_files_to_keep() -> None:
    assert {"profile.json", "bench.json"} <= {path.name for path in COMMITTED}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_file_keeps_its_hash_and_its_order(path: Path) -> None:
    """Other files name it by its hash; and saved again it is the same file."""
    data = json.loads(path.read_text())
    record = BY_SCHEMA[data["schema"]].load(path)
    added = {} if "backend" in data else {"backend": "eager"}  # benches from before there was a choice
    assert record.sha256() == sha256_of(data | added)
    assert [name for name in json.loads(record.to_json()) if name not in added] == list(data)


def test_a_file_says_what_was_run_first_and_where_last() -> None:
    first = ["schema", "created_utc", "command", "family", "weights", "backend", "dtype", "device", "threads", "seed",
             "batch", "size"]  # fmt: skip
    profile = synthetic.profile()
    for record in (profile, synthetic.bench(), synthetic.validation(profile, [0.01] * 4)):
        names = list(json.loads(record.to_json()))
        assert [name for name in names if name not in ("title", "config_sha256")][: len(first)] == first
        assert names[-1] == "environment"
    assert list(json.loads(profile.to_json()))[3:7] == ["family", "title", "weights", "config_sha256"]


# ---------------------------------------------------------------------------------------------- kinds


def test_every_record_that_a_package_declares_is_a_kind() -> None:
    files = [path for package in ("asdm", "asdm_prof") for path in (ROOT / package).rglob("*.py")]
    declared = {name for path in files for name in re.findall(r'schema="([\w.-]+)/\d+"', path.read_text())}
    assert len(declared) > 20
    assert declared == kinds().keys(), "declare a record in asdm/records or asdm_prof/records"


def test_load_reads_every_committed_file_of_a_kind() -> None:
    for path in sorted(REPORTS.rglob("*.json")):
        data = json.loads(path.read_text())
        if model := kinds().get(str(data.get("schema")).partition("/")[0]):
            assert type(asdm_prof.load(path)) is model
