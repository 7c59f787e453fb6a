"""Atomic files and versioned JSON records; an error is one sentence that names the file and what is wrong with it."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from asdm.utils import disk, inputs, locks
from asdm.utils.disk import reason as reason

REPORTS = Path("reports")
STALE_S, YOUNG_S = 3600.0, 1.0
ASIDE = ".was."  # in the name of the folder that holds what is being replaced
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


# ---------------------------------------------------------------------------------------------- writing


def refuse_overwrite(path: Path, force: bool) -> None:
    """Raises ValueError if `path` exists and `force` is False, and for a device or a pipe."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is neither a file nor a folder; name another output.")
    if path.exists() and not force:
        raise ValueError(f"{path} exists; name another output or add --force.")


# What `asdm build` and `asdm export` write into a folder of their own, beside their marker.
OUTPUTS = (
    "build.json", "export.json", "plan.json", "schedule.json", "config.json", "diff.txt",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-?????-of-?????.safetensors",
    "diffusion_pytorch_model.safetensors.index.json", "model.onnx", "model.onnx.data", "openvino_model.xml",
    "openvino_model.bin", "pass-[0-9]*", "model.mlpackage", "latency.py", "check.npz",
)  # fmt: skip


def check_replaceable(folder: Path, force: bool, marker: str, named: Iterable[str | None] = ()) -> None:
    """Raises ValueError unless `folder` is new, empty, or with `force` what the command wrote before.

    `marker` is the file by which that is known. An input is never replaced, nor the working directory, nor a folder
    with anything else in it.
    """
    check_writable(folder, force or (folder.is_dir() and not any(folder.iterdir())))
    place = folder.resolve()
    if place == Path.cwd() or place in Path.cwd().parents:
        raise ValueError(f"{folder} is the working directory or above it; name a folder for the output.")
    if held := inputs.held_in(folder, [*filter(None, named), *inputs.names()]):
        raise ValueError(f"{folder} is or holds the input {held}; name another output.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / marker).is_file():
        raise ValueError(f"{folder} is not replaced: it has no {marker}, so it was not written by this command.")
    foreign = [path.name for path in sorted(folder.iterdir()) if not any(path.match(name) for name in OUTPUTS)]
    if foreign:
        raise ValueError(f"{folder} is not replaced: it holds {foreign[0]}, which this command did not write.")


def write_whole(path: Path, content: str | bytes, force: bool = False) -> Path:
    """Write a file atomically: to a temporary file beside it, then renamed."""
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path, force, len(data)) as temporary:
        temporary.write_bytes(data)
    return path


@contextmanager
def whole_file(path: Path, force: bool = False, needed: int | None = None) -> Iterator[Path]:
    """Yields a temporary file's name beside `path`, which is renamed to `path` if the block ends without an error.

    `needed` is how many bytes will be written, where that is known, for what is said of a full disk.
    """
    refuse_overwrite(path, force)
    path = _behind_links(path)
    make_folder(path.parent)
    with disk_errors(path, needed, every=True):
        _sweep(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            with _in_work(Path(name)):
                yield Path(name)
                _allow(Path(name))
                disk.rename(Path(name), path, force)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path, force: bool = False, needed: int | None = None) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `path` if the block ends without an error; `needed`: see above."""
    _restore(path)
    refuse_overwrite(path, force or (path.is_dir() and not any(path.iterdir())))
    path = _behind_links(path)
    make_folder(path.parent)
    with disk_errors(path, every=True):
        _sweep(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with _in_work(temporary):
            with disk_errors(path, needed):
                yield temporary
            with disk_errors(path, needed, every=True):
                for file in (temporary, *temporary.rglob("*")):
                    _allow(file)
                if not force and path.is_dir() and any(path.iterdir()):
                    raise disk.came_second(temporary, path)
                _swap(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _behind_links(path: Path) -> Path:
    """The file or folder that a symbolic link leads to, which is written instead of the link.

    Raises ValueError for a link to nowhere and for a mount point, which cannot be replaced.
    """
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise ValueError(f"cannot write {path}: it is a link to {target}, whose folder does not exist.")
        path = target
    if os.path.ismount(path):
        raise ValueError(f"cannot write {path}: it is a mount point, which cannot be replaced; name a folder in it.")
    return path


def _allow(path: Path) -> None:
    """Give a file or folder the permissions that the user's umask leaves, where the file system knows any."""
    mask = os.umask(0)
    os.umask(mask)
    with suppress(OSError):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def _in_work(temporary: Path) -> Iterator[None]:
    """Hold a lock on a temporary file or folder, which the kernel releases when its process dies."""
    handle = os.open(temporary, os.O_RDONLY) if locks.AVAILABLE else None
    try:
        with suppress(OSError):  # a file system without locks
            if handle is not None:
                locks.lock(handle, shared=True, wait=False)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _sweep(path: Path) -> None:
    """Delete what killed processes left beside `path`: no living process holds its lock, and it is a second old.

    Where there are no locks, what is older than an hour.
    """
    patterns = (f".{glob.escape(path.name)}{end}????????" for end in (".", ASIDE))
    for left in itertools.chain.from_iterable(map(path.parent.glob, patterns)):
        with suppress(OSError):
            age = time.time() - left.stat().st_mtime
            if age > STALE_S or (age > YOUNG_S and locks.is_free(left)):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def _swap(new: Path, path: Path) -> None:
    """Rename `new` to `path`; what was there is deleted afterwards, or restored if the rename fails."""
    if not path.exists():
        os.replace(new, path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{ASIDE}"))
    os.replace(path, aside / path.name)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside / path.name, path)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def _restore(path: Path) -> None:
    """Put back what a process that was killed between both renames of `_swap` left aside."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}{ASIDE}*"):
        with suppress(OSError):
            if not path.exists() and time.time() - aside.stat().st_mtime > YOUNG_S:
                os.replace(aside / path.name, path)
                aside.rmdir()


def check_writable(path: Path, force: bool = False) -> None:
    """Raises ValueError if `path` cannot be written, so that a long command fails before its work."""
    inputs.check_output(path)
    _restore(path)
    refuse_overwrite(path, force)
    folder = _behind_links(path).parent
    while not folder.exists():
        folder = folder.parent
    with disk_errors(path, every=True), tempfile.TemporaryFile(dir=folder):
        pass


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; raises ValueError if that fails."""
    with disk_errors(path, every=True):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def disk_errors(path: Path, needed: int | None = None, every: bool = False) -> Iterator[None]:
    """Turns a full disk or the like, while `path` is being written, into one sentence with the room that there is.

    `needed` is how many bytes will be written, where that is known; `every`: whether the block only writes, so that any
    error of the system is about `path`.
    """
    try:
        yield
    except Exception as error:
        if not disk.is_of_the_disk(error) and not (every and isinstance(error, OSError)):
            raise
        hint = ""
        with suppress(ValueError):
            hint = " Set ASDM_CACHE to a folder that can be written." if path.is_relative_to(cache_folder("")) else ""
        raise ValueError(f"{disk.cannot_write(path, error, needed)}.{hint}") from None


# ---------------------------------------------------------------------------------------------- runs


def run_folder(*parts: str) -> Path:
    """An unused folder name for one run, `reports/<family>-<backend>-<dtype>-<utc time>`; the folder is not created."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = REPORTS / "-".join([*(part.replace("/", "_").replace(":", "-").strip("._") for part in parts), stamp])
    path, n = stem, 1
    while path.exists():
        n += 1
        path = stem.with_name(f"{stem.name}-{n}")
    return path


def cache_folder(name: str) -> Path:
    """A folder of the cache, `$ASDM_CACHE/<name>` or `~/.cache/asdm/<name>`; the folder is not created.

    Raises ValueError where there is no home folder either.
    """
    if named := os.environ.get("ASDM_CACHE"):
        return Path(named) / name
    try:
        return Path.home() / ".cache" / "asdm" / name
    except RuntimeError:
        raise ValueError("there is no home folder to cache in; set ASDM_CACHE to one that can be written.") from None


def short_name(source: str) -> str:
    """A family's or folder's own name; of a config file, its folder's where it is one more config.json."""
    path = Path(source)
    path = path.resolve().parent if path.name == "config.json" else path
    return path.name.removesuffix(".json")


def newest(name: str, under: Path = REPORTS) -> Path | None:
    """The file called `name` that was last made in the folders under `reports/`."""
    return next(iter(newest_first(under.glob(f"*/{name}"))), None)


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """JSON files by the `created_utc` in them, which a copy keeps; those without one, and equal ones, by when they were
    written."""
    times = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    return sorted(times, key=lambda path: (_created_utc(path), times[path]), reverse=True)


def _created_utc(path: Path) -> str:
    try:
        data = read_json(path)
    except (OSError, ValueError):
        return ""
    return str(data.get("created_utc", "")) if isinstance(data, dict) else ""


def find_input(path: Path) -> Path:
    """`path`, or where a bare file name is not found here, the newest file of that name under `reports/`."""
    if path.exists() or path.name != str(path):
        return path
    return newest(path.name) or path
