"""Damaged checkpoints: the newest whole one is taken, and what is passed over is named."""

import json

import pytest
import torch

from asdm.utils import console, snapshots
from asdm.utils.record import sha256_of


@pytest.fixture
def folder(tmp_path):
    console.say_once.cache_clear()
    for step in (1, 2, 3):
        tensors = {"weights": {"a": torch.full((64,), float(step))}, "average": {"a": torch.zeros(2)}}
        snapshots.write(tmp_path, step, tensors, {"place": {}, "typical": {"output": 0.1}}, keep=3)
    return tmp_path


def zeroed(content):
    return bytes(len(content))


def one_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def in_the_header(content):
    return content[:12] + bytes([content[12] ^ 8]) + content[13:]


def without_a_key(content):
    state = json.loads(content)
    del state["typical"]
    return json.dumps(state).encode()


def of_another_type(content):
    return json.dumps([json.loads(content)]).encode()


@pytest.mark.parametrize("damage", [zeroed, one_bit, in_the_header, lambda content: content[:-3], lambda _: b""])
@pytest.mark.parametrize("name", ["weights.safetensors", "average.safetensors", "state.json"])
def test_the_newest_whole_one_is_taken_and_said(folder, name, damage, capfd):
    for step in (2, 3):
        file = folder / f"step-0000000{step}" / name
        file.write_bytes(damage(file.read_bytes()))
    checkpoint = snapshots.newest(folder)
    assert checkpoint.step == 1
    assert torch.equal(checkpoint.tensors("weights")["a"], torch.ones(64))
    said = capfd.readouterr().err
    assert f"step-00000003/{name} is damaged" in said
    assert f"step-00000002/{name} is damaged" in said
    assert said.rstrip().endswith("using that of step 1.")


@pytest.mark.parametrize("damage", [without_a_key, of_another_type])
def test_a_state_that_is_json_but_not_what_was_written_is_damaged(folder, damage, capfd):
    file = folder / "step-00000003" / "state.json"
    file.write_bytes(damage(file.read_bytes()))
    assert snapshots.newest(folder).step == 2
    assert "step-00000003/state.json is damaged" in capfd.readouterr().err


def test_a_missing_file_and_none_left_are_said(folder, capfd):
    for step in (1, 2, 3):
        (folder / f"step-0000000{step}" / "weights.safetensors").unlink()
    assert snapshots.newest(folder) is None
    said = capfd.readouterr().err
    assert "step-00000003/weights.safetensors is missing" in said
    assert "there is none before it, so the stage starts again" in said


def test_checkpoints_of_earlier_versions_have_no_hashes_and_are_read(folder, capfd):
    file = folder / "step-00000003" / "state.json"
    state = json.loads(file.read_text())
    del state["sha256"], state["state_sha256"], state["typical"]
    file.write_text(json.dumps(state))
    checkpoint = snapshots.newest(folder)
    assert (checkpoint.step, capfd.readouterr().err) == (3, "")
    with pytest.raises(ValueError, match=r"step-00000003/state\.json lacks typical; delete that checkpoint"):
        checkpoint.value("typical")


def test_a_state_says_what_it_is(folder):
    state = json.loads((folder / "step-00000003" / "state.json").read_text())
    assert state["state_sha256"] == sha256_of({k: v for k, v in state.items() if k != "state_sha256"})
