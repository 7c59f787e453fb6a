"""Files that were changed by accident: 200 seeded mutations of each kind are read or refused in one sentence."""

import copy
import json
import os
import random

import pytest

from asdm.plan.edits import PruningPlan
from asdm.utils import io
from asdm_prof.planner import plan as planner
from asdm_prof.records import Profile
from tests.asdm_prof import synthetic

VALUES = [None, True, -1, 0, 1e308, 10**40, "", "x", "\x1b[31m", [], {}, [[]], -1.5]


def places(value, path=()):
    """Every place in a JSON value, by the keys that lead there."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from places(inner, (*path, key))


def changed(content, chance):
    """A copy with one value, key or type changed: still JSON."""
    mutant = copy.deepcopy(content)
    *way, last = chance.choice([path for path in places(mutant) if path])
    parent = mutant
    for key in way:
        parent = parent[key]
    kind = chance.randrange(3)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[f"{last}?"] = parent.pop(last)
    else:
        parent[last] = chance.choice(VALUES)
    return json.dumps(mutant).encode()


def torn(content, chance):
    """Its bytes with some lost, doubled or flipped: mostly no JSON any more."""
    raw = bytearray(json.dumps(content).encode())
    at = chance.randrange(len(raw))
    kind = chance.randrange(3)
    if kind == 0:
        del raw[at:]
    elif kind == 1:
        raw[at] ^= 1 << chance.randrange(8)
    else:
        raw[at:at] = raw[at : at + chance.randrange(1, 50)]
    return bytes(raw)


def profile_json():
    return json.loads(synthetic.profile("mini").to_json())


def plan_json():
    return json.loads(planner.make_plan(synthetic.profile("mini"), "0.8").to_json())


@pytest.mark.parametrize(
    ("model", "make"), [(Profile, profile_json), (PruningPlan, plan_json)], ids=["profile", "plan"]
)
def test_two_hundred_mutations_are_read_or_refused(tmp_path, model, make):
    content, chance, refused = make(), random.Random(7), 0
    file = tmp_path / "file.json"
    for n in range(200):
        file.write_bytes((changed if n % 2 else torn)(content, chance))
        message = ""
        try:
            model.load(file)
        except ValueError as error:
            message = str(error)
        refused += bool(message)
        assert "\n" not in message
        assert not message or str(file) in message
    assert 100 < refused < 200


def test_what_json_cannot_be_is_named(tmp_path):
    deep, digits, pipe, mark = (tmp_path / name for name in ("deep", "digits", "pipe", "mark"))
    deep.write_text("[" * 100_000)
    digits.write_text("1" * 5000)
    os.mkfifo(pipe)
    mark.write_bytes(b"\xef\xbb\xbf{}")
    for file, words in ((deep, "is nested too deeply"), (digits, "4300"), (pipe, "is not a file")):
        with pytest.raises(ValueError, match=words) as caught:
            io.read_json(file)
        assert str(file) in str(caught.value)
    assert io.read_json(mark) == {}


def test_a_negative_time_is_refused(tmp_path):
    content = profile_json()
    content["units"][0]["latency_s"]["median"] = -1.0
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"p\.json: the file: the latency of .* cannot be negative, got -1\.0"):
        Profile.load(tmp_path / "p.json")
