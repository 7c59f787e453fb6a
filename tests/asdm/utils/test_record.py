"""A record comes back as it was saved; what is none is refused in one sentence."""

from __future__ import annotations

import json
import os

import pytest

from asdm.utils.record import Record, read_json, sha256_of


class Note(Record, schema="asdm.note/1"):
    text: str
    seconds: float = 0.0


def test_a_record_comes_back_with_its_hash(tmp_path):
    note = Note(text="naïve – ½", seconds=0.1 + 0.2)
    again = Note.load(note.save(tmp_path / "note.json"))
    assert again == note
    assert again.sha256() == note.sha256() != Note(text="other").sha256()
    assert json.loads((tmp_path / "note.json").read_text())["schema"] == "asdm.note/1"


def test_hashes_do_not_depend_on_the_order_of_keys():
    assert sha256_of({"a": 1, "b": [2]}) == sha256_of({"b": [2], "a": 1}) != sha256_of({"a": 1})


def test_a_newer_file_with_more_fields_is_read(tmp_path):
    path = tmp_path / "note.json"
    path.write_text('{"schema": "asdm.note/1", "text": "t", "mood": "good"}')
    assert Note.load(path) == Note(text="t")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"schema": "asdm.note/1",\n "text": "t', r"note\.json is not valid JSON: .* at line 2, column 10\.$"),
        ("", r"note\.json is not valid JSON: .* at line 1"),
        ('{"schema": "asdm.note/2", "text": "t"}', r"note\.json has schema asdm\.note/2.*reads asdm\.note/1.*upgrade"),
        ('{"schema": "asdm.plan/1"}', r"note\.json has schema 'asdm\.plan/1'; expected 'asdm\.note/1'\.$"),
        ("{}", r"note\.json has schema None; expected 'asdm\.note/1'\.$"),
        ("[1, 2]", r"note\.json has schema None"),
        ('{"schema": "asdm.note/1", "text": 7}', r"note\.json: text: .*, got 7\.$"),
        ('{"schema": "asdm.note/1"}', r"note\.json: text: field required\.$"),
        ('{"schema": "asdm.note/1", "text": "t", "seconds": 1e999}', r"note\.json: seconds: .*finite number"),
        ('{"schema": "asdm.note/1", "text": "t", "seconds": NaN}', r"has the value NaN, which is not a number"),
        (
            '{"schema": "asdm.note/1", "text": "t", "seconds": -Infinity}',
            r"has the value -Infinity, which is not a number",
        ),
    ],
)
def test_a_broken_record_is_refused_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "note.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        Note.load(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        Note.load(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="is a folder; name a JSON file"):
        Note.load(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"picture\.png is not a text file"):
        Note.load(tmp_path / "picture.png")


def test_nan_never_gets_into_a_record():
    with pytest.raises(ValueError, match="finite"):
        Note(text="t", seconds=float("nan"))


def test_what_json_cannot_be_is_named(tmp_path):
    deep, digits, pipe, mark = (tmp_path / name for name in ("deep", "digits", "pipe", "mark"))
    deep.write_text("[" * 100_000)
    digits.write_text("1" * 5000)
    os.mkfifo(pipe)
    mark.write_bytes(b"\xef\xbb\xbf{}")
    for file, words in ((deep, "is nested too deeply"), (digits, "4300"), (pipe, "is not a file")):
        with pytest.raises(ValueError, match=words) as caught:
            read_json(file)
        assert str(file) in str(caught.value)
    assert read_json(mark) == {}
