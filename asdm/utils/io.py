"""Files and folders that are written whole or not at all; an error is one sentence that names the file."""

from __future__ import annotations

import glob
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asdm.utils import disk, inputs, locks
from asdm.utils.cache import cache_folder

STALE_S, YOUNG_S = 3600.0, 1.0
ASIDE = ".was."  # in the name of the folder that holds what is being replaced


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
