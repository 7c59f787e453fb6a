"""What files beside pictures say about them: captions and aesthetic scores, in text, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asdm.data.datasets import BrokenExample
from asdm.data.settings import Selection

CAPTION_KEYS = ("text", "caption", "prompt")
SCORE_KEYS = ("aesthetic", "aesthetic_score", "aesthetics")
BESIDE = (".txt", ".caption", ".json")  # the first that is there is read
TABLES = (".jsonl", ".csv", ".parquet")
SPLITS = ("train", "held_out")  # of a data set that has none of its own: --hold-out leaves pictures to the second
Row = Mapping[str, Any]


def caption_beside(files: Mapping[str, bytes]) -> tuple[str, Row]:
    """The caption among an example's files (suffix → contents), with what its .json says; raises BrokenExample."""
    row = json_row(files[".json"]) if ".json" in files else {}
    for suffix in (".txt", ".caption"):
        if suffix in files:
            try:
                text = files[suffix].decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise BrokenExample("a caption that is not UTF-8") from None
            return not_empty(text), row
    if ".json" not in files:
        raise BrokenExample("no caption")
    return caption_in(row), row


def caption_in(row: Row) -> str:
    """The caption in a row of metadata; raises BrokenExample."""
    names = {str(key).lower(): key for key in row}
    key = next((names[key] for key in CAPTION_KEYS if key in names), None)
    if key is None:
        raise BrokenExample("no caption")
    value = row[key]
    if value is None or value != value:  # as NaN, which is what a table has for nothing
        raise BrokenExample("a caption that is null")
    if isinstance(value, bool | list | dict) or not isinstance(value, str | int | float):
        raise BrokenExample("a caption that is not text")
    return not_empty(str(value).strip())


def not_empty(text: str) -> str:
    if not text:
        raise BrokenExample("an empty caption")
    return text


def json_row(data: bytes) -> Row:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenExample("metadata that is not JSON") from None
    if not isinstance(row, dict):
        raise BrokenExample("metadata that is not a JSON object")
    return row


def check_score(row: Row, selection: Selection) -> None:
    """Raises BrokenExample for a picture whose aesthetic score is unknown or too low, where one is asked for."""
    if selection.min_aesthetic is None:
        return
    scores = {str(key).lower(): value for key, value in row.items()}
    score = next((scores[key] for key in SCORE_KEYS if key in scores), None)
    try:
        number = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BrokenExample("no aesthetic score") from None
    if not number >= selection.min_aesthetic:
        raise BrokenExample(f"an aesthetic score below {selection.min_aesthetic:g}")


def is_held_out(name: str, selection: Selection) -> bool:
    """Whether an example belongs to the held-out split: by its name alone, so that it does not move."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < selection.hold_out * 2**32


def check_split(name: str, split: str, selection: Selection) -> bool:
    """Whether an example belongs to a split, of a data set that has none of its own."""
    return not selection.hold_out or is_held_out(name, selection) == (split == "held_out")


def check_split_name(split: str, source: str) -> None:
    """Raises ValueError for a split that a data set without splits of its own cannot have, such as a mistyped one."""
    if split not in SPLITS:
        raise ValueError(f"{source} has no split {split!r}; choose from {', '.join(SPLITS)}.")


def read_table(path: Path) -> list[Row | BrokenExample]:
    """The rows of a .jsonl, .csv or .parquet file; an error for a line that is not a row."""
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                return [_in_utf8(path, number, row) for number, row in enumerate(csv.DictReader(stream), start=1)]
        # A line ends at \n alone: U+2028 and others may stand in a caption.
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    return [_json_line(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _json_line(path: Path, number: int, line: str) -> Row | BrokenExample:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return BrokenExample("a line that is not a JSON object", f"{path.name}:{number}")
    return _in_utf8(path, number, row)


def _in_utf8(path: Path, number: int, row: Row) -> Row | BrokenExample:
    """The row, unless some of its text is not UTF-8, such as Latin-1: what of it cannot be decoded is a surrogate."""
    if any(isinstance(text, str) and not _is_utf8(text) for pair in row.items() for text in pair):
        return BrokenExample("a line that is not UTF-8", f"{path.name}:{number}")
    return row


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> list[Row | BrokenExample]:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow; pip install 'asdm-prof[parquet]'.") from None
    except Exception as error:  # whatever pyarrow makes of damaged bytes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} is not a Parquet file: {reason}.") from None
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
