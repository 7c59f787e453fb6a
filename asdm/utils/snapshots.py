"""Atomic checkpoints: a folder of tensors and state, written beside the older ones and renamed last.

A process that is killed at any point leaves the earlier checkpoints intact, and at most a folder with a leading dot,
which the next run deletes. Every file's hash stands in the state, and the state's own, so that a damaged checkpoint is
passed over for the newest whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from asdm.utils import console
from asdm.utils.io import disk_errors, make_folder, whole_folder
from asdm.utils.record import read_json, sha256_of, sha256_of_file

STATE = "state.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `state` is plain JSON, tensors are read on demand."""

    folder: Path
    step: int
    state: dict[str, Any]

    def value(self, key: str) -> Any:
        """An entry of the state; raises ValueError where another version wrote none."""
        if key not in self.state:
            raise ValueError(f"{self.folder / STATE} lacks {key}; delete that checkpoint, or choose another output.")
        return self.state[key]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return {key: value.clone() for key, value in load_file(self.folder / f"{name}.safetensors").items()}


def write(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step` and delete all but the last `keep`.

    Raises ValueError if it cannot be written, such as on a full disk; earlier checkpoints stay.
    """
    from safetensors.torch import save_file

    path = folder / f"{PREFIX}{step:08d}"
    sizes, hashes = {}, {}
    room = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    with one_sentence(f"the checkpoint {path}", folder), whole_folder(path, force=True, needed=room) as temporary:
        for name, named in tensors.items():
            file = temporary / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in named.items()}, file)
            _to_disk(file)
            sizes[name], hashes[name] = file.stat().st_size, sha256_of_file(file)
        content = json.loads(json.dumps({"step": step, "bytes": sizes, "sha256": hashes, **state}, allow_nan=False))
        content["state_sha256"] = sha256_of(content)
        (temporary / STATE).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        _to_disk(temporary / STATE)
    _to_disk(folder)
    keep_last(folder, keep)
    return path


def keep_last(folder: Path, count: int) -> None:
    """Delete all but the last `count` checkpoints of a folder."""
    for old in _folders(folder)[:-count]:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def one_sentence(what: str, folder: Path) -> Iterator[None]:
    """Turns a write error in the block into a ValueError that says which checkpoint of `folder` is complete."""
    try:
        with disk_errors(folder, every=True):
            yield
    except ValueError as error:  # from asdm.utils.io
        written, _, why = str(error).rstrip(".").partition(": ")
        if not written.startswith("cannot write"):
            raise
        raise ValueError(f"cannot write {what}: {why}; {_what_is_left(folder)}.") from None


def newest(folder: Path) -> Checkpoint | None:
    """The last whole checkpoint of a folder, or None; damaged ones after it are named once."""
    damaged: list[str] = []
    for path in reversed(_folders(folder)):
        problem = _damage(path, _stamps(path))
        if problem is None:
            break
        damaged.append(problem)
    else:
        path = None
    if damaged:
        instead = f"using that of step {_step(path)}" if path else "there is none before it, so the stage starts again"
        console.say_once(f"Warning: {'; '.join(damaged)}; {instead}.")
    return Checkpoint(path, _step(path), read_json(path / STATE)) if path else None


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders of a killed process."""
    for path in folder.glob(".*.????????") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


@cache
def _damage(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> str | None:
    """What is wrong with a checkpoint, or None; read once for files of the same sizes and times."""
    sizes = {name: size for name, size, _ in stamps}
    try:
        state = read_json(path / STATE)
        wanted = {f"{name}.safetensors": size for name, size in state["bytes"].items()}
        hashes = state.get("sha256", {})  # earlier versions wrote none
        rest = {key: value for key, value in state.items() if key != "state_sha256"}
        whole_state = state.get("state_sha256") in (None, sha256_of(rest)) and isinstance(state["step"], int)
        if not whole_state:
            return f"{path / STATE} is damaged"
        for name, size in wanted.items():
            stem = name.removesuffix(".safetensors")
            if sizes.get(name) != size or hashes.get(stem) not in (None, sha256_of_file(path / name)):
                return f"{path / name} is damaged" if name in sizes else f"{path / name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{path / STATE} is damaged"
    return None


def _stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple(sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in path.iterdir() if f.is_file()))


def _step(path: Path) -> int:
    return int(read_json(path / STATE)["step"])


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems know no fsync of a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _what_is_left(folder: Path) -> str:
    last = newest(folder)
    return f"the checkpoint of step {last.step} is complete" if last else "there is no earlier checkpoint"


def prepare(folder: Path) -> Path:
    """Create the folder if needed, and delete the leftovers of a killed process in it."""
    clear_leftovers(folder)
    return make_folder(folder)
