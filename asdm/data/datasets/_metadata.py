"""What files beside pictures say about them: captions and aesthetic scores, in text, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asdm.data.datasets import BrokenExample
from asdm.data.settings import Selection
from asdm.utils import console
from asdm.utils.pictures import MOST_BYTES

CAPTION_KEYS = ("text", "caption", "prompt")
SCORE_KEYS = ("aesthetic", "aesthetic_score", "aesthetics")
BESIDE = (".txt", ".caption", ".json")  # the first that is there is read
TABLES = (".jsonl", ".csv", ".parquet")
SPLITS = ("train", "held_out")  # of a data set that has none of its own: --hold-out leaves pictures to the second
Row = Mapping[str, Any]


class BrokenRow(BrokenExample):
    """A row of a table that cannot be used, and what could be read of it."""

    def __init__(self, reason: str, name: str, row: Row | None = None) -> None:
        super().__init__(reason, name)
        self.row = row or {}


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
    if value is None or (isinstance(value, float) and math.isnan(value)):  # which is what a table has for nothing
        raise BrokenExample("a caption that is null")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise BrokenExample("a caption that is not text")
    return not_empty(str(value).strip())


def not_empty(text: str) -> str:
    if not text:
        raise BrokenExample("an empty caption")
    if not is_utf8(text):  # such as half of an emoji in JSON's escapes
        raise BrokenExample("a caption that is not UTF-8")
    return text


def check_name(name: str) -> None:
    """Raises BrokenExample for a file that its name tells is none of the user's."""
    if name.startswith("._"):
        raise BrokenExample("a file of macOS, not a picture")
    if name.startswith("."):
        raise BrokenExample("a hidden file")


def read_part(path: Path) -> bytes:
    """The bytes of a picture or caption; raises BrokenExample."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BrokenExample(f"a file of more than {MOST_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise BrokenExample((error.strerror or str(error)).lower()) from None


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
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BrokenExample("no aesthetic score")
    if number < selection.min_aesthetic:
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


def read_table(path: Path) -> list[Row | BrokenRow]:
    """The rows of a .jsonl, .csv or .parquet file; an error for a line that is not a row."""
    if not path.is_file():  # such as a FIFO, whose reading would never end, or a link to nothing
        raise ValueError(f"{path} is not a file; a table of captions is one.")
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


def _json_line(path: Path, number: int, line: str) -> Row | BrokenRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return BrokenRow("a line that is not a JSON object", f"{path.name}:{number}")
    return _in_utf8(path, number, row)


def _in_utf8(path: Path, number: int, row: Row) -> Row | BrokenRow:
    """The row, unless some of its text is not UTF-8, such as Latin-1: what of it cannot be decoded is a surrogate."""
    if any(isinstance(text, str) and not is_utf8(text) for pair in row.items() for text in pair):
        return BrokenRow("a line that is not UTF-8", f"{path.name}:{number}", row)
    return row


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> list[Row | BrokenRow]:
    """The rows as plain Python values, like JSON's: lists, None, and whole numbers that stay whole beside None."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow; pip install 'asdm-prof[parquet]'.") from None
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
            columns = [_values(column) for column in table.columns]
    except Exception as error:  # whatever pyarrow makes of damaged bytes
        reason = console.first_line(error)
        raise ValueError(f"{path} is not a Parquet file that can be read: {reason}.") from None
    names = [str(name) for name in table.column_names]
    rows = (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
    return [_in_utf8(path, number, row) for number, row in enumerate(rows, start=1)]


def _values(column: Any) -> list[Any]:
    """A column's values; what of a text is not UTF-8 becomes surrogates, as in a line of JSON."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        texts = column.cast("binary").to_pylist()
        return [text if text is None else text.decode("utf-8", "surrogateescape") for text in texts]
