"""Versioned JSON records; an error is one sentence that names the file and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from asdm.utils import inputs
from asdm.utils.disk import reason
from asdm.utils.io import write_whole

FROM_FILE = "from a file"
CONFLICT_MARKERS = ("<<<<<<< ", ">>>>>>> ", "||||||| ")


class Frozen(BaseModel):
    """A plain value that goes into a JSON file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="after")
    def _intervals_go_up(self, info: ValidationInfo) -> Self:
        """In a file, no interval ends below its beginning."""
        for name in type(self).model_fields if info.context == FROM_FILE else ():
            low, high = getattr(self, name), getattr(self, f"{name.removesuffix('low')}high", None)
            if name.endswith("low") and low is not None and high is not None and low > high:
                raise ValueError(f"an interval goes from low to high, got [{low}, {high}]")
        return self


def later(default: Any) -> Any:
    """A field that older files of the schema lack; it is not written at its default, so that their hashes stay."""
    return Field(default, exclude_if=lambda value: value == default)


class Record(Frozen):
    """A JSON file with a versioned schema: `class Profile(Record, schema="asdm.profile/1")`."""

    SCHEMA: ClassVar[str]
    schema_: str = Field("", alias="schema", validate_default=True)

    def __init_subclass__(cls, schema: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if schema:
            cls.SCHEMA = schema

    @field_validator("schema_")
    @classmethod
    def _own_schema(cls, value: str) -> str:
        if value not in ("", cls.SCHEMA):
            raise ValueError(f"input should be {cls.SCHEMA!r}, got {value!r}")
        return cls.SCHEMA

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"

    def sha256(self) -> str:
        """The hash that the next file of the chain refers to."""
        return sha256_of(self.model_dump(mode="json", by_alias=True))

    def save(self, path: Path | str, force: bool = False) -> Path:
        return write_whole(Path(path), self.to_json(), force=force)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a record; raises ValueError in one sentence that names the file and what is wrong with it."""
        inputs.note(path)
        return cls.parse(read_json(Path(path)), source=str(path))

    @classmethod
    def parse(cls, data: Any, source: str) -> Self:
        _check_schema(data, cls.SCHEMA, source)
        try:
            return cls.model_validate(data, context=FROM_FILE)
        except ValidationError as error:
            raise ValueError(f"{source}: {first_problem(error)}") from None


def sha256_of(data: Any) -> str:
    """Hash of a JSON value, independent of the order of keys and of spacing."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def brief(value: Any) -> str:
    """A value as an error message shows it: text as it is, anything else as JSON, cut to 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def utc_now() -> str:
    """The time as ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises ValueError where it is missing, a folder, or broken (with the line)."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a JSON file in it.")
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if not path.is_file():  # a pipe or a device, which may never end
        raise ValueError(f"{path} is not a file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.startswith(CONFLICT_MARKERS):
                raise ValueError(f"{path}: line {number} is a git conflict marker; resolve the conflict.") from None
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file.") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"has the value {name}, which is not a number in JSON.")


def _check_schema(data: Any, schema: str, source: str) -> None:
    actual = data.get("schema") if isinstance(data, dict) else None
    if actual == schema:
        return
    if isinstance(actual, str) and actual.partition("/")[0] == schema.partition("/")[0]:
        raise ValueError(
            f"{source} has schema {actual}, but this asdm reads {schema}: upgrade asdm, or create the file again."
        )
    raise ValueError(f"{source} has schema {actual!r}; expected {schema!r}.")


def first_problem(error: ValidationError) -> str:
    """One sentence for the first problem that pydantic reports: where, what, and the value."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        choices = problem["ctx"].get(
            "expected_tags", "remove_layer, remove_unit, replace_unit, remove_block, graft_block"
        )
        tag = problem["ctx"].get("tag")
        message = f"unknown 'op' {tag!r}" if tag else "'op' is missing"
        return f"{where}: {message}; choose from {choices}."
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}."
    value = problem.get("input")
    suffix = "" if isinstance(value, (dict, list)) or problem["type"] == "missing" else f", got {value!r}"
    return f"{where}: {problem['msg'].rstrip('.').lower()}{suffix}."
