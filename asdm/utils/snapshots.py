"""Atomic checkpoints: a folder of tensors and state, written beside the older ones and renamed last.

A process that is killed at any point leaves the earlier checkpoints intact, and at most a folder with a leading dot,
which the next run deletes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asdm.utils.io import make_folder, whole_folder

STATE = "state.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `state` is plain JSON, tensors are read on demand."""

    folder: Path
    step: int
    state: dict[str, Any]

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
    sizes = {}
    with one_sentence(f"the checkpoint {path}", folder), whole_folder(path, force=True) as temporary:
        for name, named in tensors.items():
            file = temporary / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in named.items()}, file)
            _to_disk(file)
            sizes[name] = file.stat().st_size
        (temporary / STATE).write_text(
            json.dumps({"step": step, "bytes": sizes, **state}, indent=1, allow_nan=False) + "\n"
        )
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
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {what}: {_reason(error)}; {_what_is_left(folder)}.") from None
    except ValueError as error:  # from asdm.utils.io
        if not str(error).startswith("cannot write"):
            raise
        raise ValueError(f"{str(error).rstrip('.')}; {_what_is_left(folder)}.") from None


def newest(folder: Path) -> Checkpoint | None:
    """The last complete checkpoint of a folder, or None."""
    return next(filter(None, map(_load, reversed(_folders(folder)))), None)


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders of a killed process."""
    for path in folder.glob(".*.????????") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _load(path: Path) -> Checkpoint | None:
    """The checkpoint if its files have the sizes that its state names, else None: a power cut may truncate files."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        sizes = {name: (path / f"{name}.safetensors").stat().st_size for name in state["bytes"]}
    except (OSError, ValueError, KeyError):
        return None
    return Checkpoint(path, int(state["step"]), state) if sizes == state["bytes"] else None


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems know no fsync of a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    """`no space left on device`, of Python's error or of safetensors' own."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    match = re.search(r'([^:("]+)(?: \(os error|" })', str(error))  # the messages of safetensors 0.6 and of 0.4
    return match[1].strip().lower() if match else str(error)


def _what_is_left(folder: Path) -> str:
    last = newest(folder)
    return f"the checkpoint of step {last.step} is complete" if last else "there is no earlier checkpoint"


def prepare(folder: Path) -> Path:
    """Create the folder if needed, and delete the leftovers of a killed process in it."""
    clear_leftovers(folder)
    return make_folder(folder)
