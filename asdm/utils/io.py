"""Files that are written whole or not at all, and records that are read with one clear sentence on error."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

REPORTS = Path("reports")


class Frozen(BaseModel):
    """A plain value that goes into a JSON file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)


def later(default: Any) -> Any:
    """A field that older files of the same schema lack: left out at its default, so that their hashes stay."""
    return Field(default, exclude_if=lambda value: value == default)


class Record(Frozen):
    """A JSON file with a versioned schema, such as `asdm.profile/1`."""

    SCHEMA: ClassVar[str]
    schema_: str = Field(alias="schema")

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"

    def sha256(self) -> str:
        """The hash that the next file of the chain refers to."""
        return sha256_of(self.model_dump(mode="json", by_alias=True))

    def save(self, path: Path | str, force: bool = False) -> Path:
        return write_whole(Path(path), self.to_json(), force=force)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a record; raises ValueError in one sentence that names the file and what is wrong with it."""
        return cls.parse(read_json(Path(path)), source=str(path))

    @classmethod
    def parse(cls, data: Any, source: str) -> Self:
        _check_schema(data, cls.SCHEMA, source)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(f"{source}: {first_problem(error)}") from None


def sha256_of(data: Any) -> str:
    """Hash of JSON values, however they are ordered and spaced."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def brief(value: Any) -> str:
    """A value as an error message shows it: as JSON where it is no text, cut to 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def between_marks(text: str, mark: str, inside: str) -> str:
    """A Markdown text with `inside` between `<!-- mark -->` and `<!-- /mark -->`."""
    return re.sub(rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)", lambda m: f"{m[1]}{inside}{m[2]}", text, flags=re.S)


def utc_now() -> str:
    """The time as ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises ValueError where it is missing, a folder, or broken (with the line)."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a JSON file in it.")
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except _NoNumber as error:
        raise ValueError(f"{path} has the value {error}, which is no number.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file.") from None


class _NoNumber(Exception):
    """NaN or an infinity in a JSON file."""


def _no_constant(name: str) -> float:
    raise _NoNumber(name)


def _check_schema(data: Any, schema: str, source: str) -> None:
    found = data.get("schema") if isinstance(data, dict) else None
    if found == schema:
        return
    if isinstance(found, str) and found.partition("/")[0] == schema.partition("/")[0]:
        raise ValueError(
            f"{source} has schema {found}, and this asdm reads {schema}: upgrade asdm, or make the file anew."
        )
    raise ValueError(f"{source} has schema {found!r}; expected {schema!r}.")


def first_problem(error: ValidationError) -> str:
    """One sentence for the first problem that pydantic found: where, what, and what was given."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        choices = problem["ctx"].get(
            "expected_tags", "remove_layer, remove_unit, replace_unit, remove_block, graft_block"
        )
        found = problem["ctx"].get("tag")
        said = f"unknown 'op' {found!r}" if found else "'op' is missing"
        return f"{where}: {said}; choose from {choices}."
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}."
    given = problem.get("input")
    shown = "" if isinstance(given, (dict, list)) or problem["type"] == "missing" else f" (given: {given!r})"
    return f"{where}: {problem['msg'].rstrip('.').lower()}{shown}."


# ---------------------------------------------------------------------------------------------- writing


def refuse_overwrite(path: Path, force: bool) -> None:
    """Raises ValueError where something is at `path` and `force` is not given."""
    if path.exists() and not force:
        raise ValueError(f"{path} exists; name another output or add --force.")


def write_whole(path: Path, content: str | bytes, force: bool = False) -> Path:
    """Write a file by temp file and rename, so that a reader never sees half of it."""
    refuse_overwrite(path, force)
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    with _one_sentence(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


@contextmanager
def whole_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """Fill a temporary folder that takes the name `path` only when the block ends without an error."""
    refuse_overwrite(path, force)
    make_folder(path.parent)
    with _one_sentence(path):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        os.chmod(temporary, 0o755)
    try:
        yield temporary
        with _one_sentence(path):
            for file in temporary.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)
            _swap(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(new: Path, path: Path) -> None:
    """Put `new` at `path`; what was there goes only after that, and comes back where it fails."""
    if not path.exists():
        os.replace(new, path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    os.replace(path, aside / path.name)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside / path.name, path)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def check_writable(path: Path, force: bool = False) -> None:
    """Fail before the long work, not after it: raises ValueError where `path` could not be written."""
    refuse_overwrite(path, force)
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with _one_sentence(path), tempfile.TemporaryFile(dir=folder):
        pass


def make_folder(path: Path) -> Path:
    """A folder and its parents; raises ValueError where it cannot be made."""
    with _one_sentence(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write {path}: {(error.strerror or str(error)).lower()}.") from None


# ---------------------------------------------------------------------------------------------- runs


def run_folder(*parts: str) -> Path:
    """A folder name of its own for one run: `reports/<family>-<backend>-<dtype>-<utc time>`; not made yet."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = REPORTS / "-".join([*(part.replace("/", "_").strip("._") for part in parts), stamp])
    path, n = stem, 1
    while path.exists():
        n += 1
        path = stem.with_name(f"{stem.name}-{n}")
    return path


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept: `$ASDM_CACHE/<name>`, by default `~/.cache/asdm/<name>`; not made yet."""
    return Path(os.environ.get("ASDM_CACHE") or Path.home() / ".cache" / "asdm") / name


def short_name(source: str) -> str:
    """A family's or folder's own name; of a config file, its folder's where it is one more config.json."""
    path = Path(source)
    path = path.resolve().parent if path.name == "config.json" else path
    return path.name.removesuffix(".json")


def newest(name: str, under: Path = REPORTS) -> Path | None:
    """The file called `name` that was last written in the folders under `reports/`."""
    return max(under.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime_ns, default=None)


def find_input(path: Path) -> Path:
    """`path`, or where a bare file name is not found here, the newest file of that name under `reports/`."""
    if path.exists() or path.name != str(path):
        return path
    return newest(path.name) or path
