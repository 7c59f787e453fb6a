"""The folders of runs under `reports/`: the name of a new one, and the newest file of a name."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from asdm.utils.record import read_json

REPORTS = Path("reports")


def run_folder(*parts: str) -> Path:
    """An unused folder name for one run, `reports/<family>-<backend>-<dtype>-<utc time>`; the folder is not created."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = REPORTS / "-".join([*(part.replace("/", "_").replace(":", "-").strip("._") for part in parts), stamp])
    path, n = stem, 1
    while path.exists():
        n += 1
        path = stem.with_name(f"{stem.name}-{n}")
    return path


def short_name(source: str) -> str:
    """A family's or folder's own name; of a config file, its folder's where it is one more config.json."""
    path = Path(source)
    path = path.resolve().parent if path.name == "config.json" else path
    return path.name.removesuffix(".json")


def newest(name: str, under: Path = REPORTS) -> Path | None:
    """The file called `name` that was last made in the folders under `reports/`."""
    return next(iter(newest_first(path for path in under.glob(f"*/{name}") if path.is_file())), None)


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
