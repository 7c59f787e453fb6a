"""A folder of pictures, captioned by a table as in Hugging Face's ImageFolder or by a file beside each picture.

photos/metadata.jsonl   {"file_name": "cat.jpg", "text": "a cat on a mat"}; or metadata.csv, metadata.parquet
photos/cat.jpg          or, without such a table, photos/cat.txt, cat.caption or cat.json with the caption

A folder without any caption is for training without captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from asdm.data.datasets import BrokenExample, Example, Indexed, LeftOut
from asdm.data.datasets._metadata import (
    BESIDE,
    TABLES,
    BrokenRow,
    Row,
    caption_beside,
    caption_in,
    check_name,
    check_score,
    check_split,
    check_split_name,
    read_part,
    read_table,
)
from asdm.data.datasets._pictures import NOT_DECODED, OTHER_SUFFIXES, SUFFIXES, Frame, decode_picture, shapes_of
from asdm.data.settings import Selection
from asdm.utils import console
from asdm.utils.record import sha256_of

OWN_SPLITS = ("train", "validation", "val", "valid", "test", "held_out")  # subfolders that are taken for splits
NOT_DATA = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders of systems, and hidden ones


class Folder(Indexed[Example]):
    """Pictures of a folder and its subfolders, scaled and cut on access; with `flip`, each mirrored as well."""

    def __init__(
        self,
        files: Sequence[Path],
        captions: Sequence[str],
        size: int,
        selection: Selection = Selection(),
        left_out: LeftOut | None = None,
    ) -> None:
        self.files, self.size, self.selection = tuple(files), size, selection
        self.captions = tuple(captions) * (2 if selection.flip else 1)
        self.frame, self.left_out = Frame.of(size, selection), left_out or LeftOut()

    @property
    def fingerprint(self) -> str:
        """Hash of all captions, file names and file sizes, and of what is done with the pictures."""
        files = [(file.name, file.stat().st_size if file.exists() else 0) for file in self.files]
        return sha256_of([self.size, files, self.captions, *self.selection.fingerprint()])[:16]

    @cached_property
    def shapes(self) -> list[tuple[int, int]] | None:
        """Height and width of each example where they are not all the same."""
        if not self.selection.buckets:
            return None
        return shapes_of(self.files, self.frame) * (2 if self.selection.flip else 1)

    @property
    def pictures(self) -> int:
        """How many there are; the examples from that number on are the same, mirrored."""
        return len(self.files)

    def __len__(self) -> int:
        return len(self.captions)

    def example(self, index: int) -> Example:
        mirrored, number = divmod(index, len(self.files))
        file = self.files[number]
        try:
            image, time_ids = decode_picture(read_part(file), self.frame, bool(mirrored))
        except BrokenExample as error:
            raise BrokenExample(error.reason, str(file), bool(mirrored)) from None
        return Example(image, self.captions[index], time_ids)


def open_data(
    split: str = "train", size: int = 512, source: str | None = None, selection: Selection = Selection()
) -> Folder:
    """The pictures of the folder `source`, or of its subfolder `split` if there is one.

    Raises ValueError if it is not a folder, or without any example that can be used.
    """
    if not source:
        raise ValueError("the data set folder needs a folder: folder:DIR.")
    root = Path(source)
    if not root.is_dir():
        raise ValueError(f"{source} is not a folder.")
    own_split = _is_name(split) and (root / split).is_dir()
    if not own_split or selection.hold_out:
        _check_split_name(split, root, selection)
    root = root / split if own_split else root
    left_out, pairs, other_split = LeftOut(), dict[Path, str](), 0
    tables = [root / f"metadata{suffix}" for suffix in TABLES]
    table = next((file for file in tables if os.path.lexists(file)), None)
    for entry in _listed(table) if table else _beside(root):
        if isinstance(entry, BrokenExample):
            left_out.add(entry.reason, entry.name)
            continue
        file, caption, row = entry
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        if not own_split and not check_split(name, split, selection):
            other_split += 1
            continue
        try:
            check_score(row, selection)
        except BrokenExample as error:
            left_out.add(error.reason, name)
            continue
        pairs[file] = caption
    if not pairs:
        if other_split:
            change = "raise" if split == "held_out" else "lower"
            raise ValueError(f"{root} has no picture in the split {split}; {change} --hold-out.")
        raise ValueError(_nothing_in(root, left_out))
    for line in left_out.lines():
        console.say_once(f"{root}: {line}")
    return Folder(list(pairs), list(pairs.values()), size, selection, left_out)


def _check_split_name(split: str, root: Path, selection: Selection) -> None:
    """Raises ValueError for an unknown split, and for one that a folder with splits of its own lacks."""
    if own := [name for name in OWN_SPLITS if (root / name).is_dir()]:
        if selection.hold_out and "held_out" in own and split in own:
            return
        if selection.hold_out and split in (*own, "held_out"):
            whole = root / (split if split in own else own[0])
            raise ValueError(
                f"{root} has no folder held_out beside {', '.join(own)}; name folder:{whole}, of which --hold-out "
                "keeps a share."
            )
        raise ValueError(f"{root} has no split {split!r}; choose from {', '.join(own)}.")
    check_split_name(split, str(root))


def _nothing_in(root: Path, left_out: LeftOut) -> str:
    why = "; ".join(line.rstrip(".") for line in left_out.lines()) or "there is no picture in it"
    return f"{root} has no example that can be used: {why[0].lower()}{why[1:]}.{_misnamed(root)}"


def _misnamed(root: Path) -> str:
    """A sentence on files that look like a table of metadata but are not called like one."""
    known = {f"metadata{suffix}" for suffix in TABLES}
    names = sorted(path.name for path in root.glob("metadata*") if path.name not in known)
    choices = ", ".join(f"metadata{suffix}" for suffix in TABLES)
    return f" {', '.join(names)} was not read; a table of captions is called {choices}." if names else ""


def _listed(path: Path) -> Iterator[tuple[Path, str, Row] | BrokenExample]:
    """The rows of a table of metadata, each with its file, or why it cannot be used."""
    files: set[Path] = set()
    named, without_name = set[Path](), 0
    for number, row in enumerate(read_table(path), start=1):
        name = (row.row if isinstance(row, BrokenRow) else row).get("file_name")
        if isinstance(name, str) and name:
            named |= {path.parent / name, path.parent.parent / name, path.parent / Path(name).name}
        else:
            without_name += 1
        if isinstance(row, BrokenRow):
            yield row
            continue
        place = f"{path.name}:{number} ({name})" if name else f"{path.name}:{number}"
        try:
            file = _named(path, name)
            caption = caption_in(row)
            if file in files:
                raise BrokenExample("a second row for the same file")
        except BrokenExample as error:
            yield BrokenExample(error.reason, place)
            continue
        files.add(file)
        yield file, caption, row
    # The pictures that no row names; each row without a name stands for one that was counted.
    others = [file for file in _pictures_in(path.parent) if file not in named and not file.name.startswith(".")]
    for file in others[without_name:]:
        yield BrokenExample(f"a picture that {path.name} does not name", file.relative_to(path.parent).as_posix())


def _named(table: Path, name: object) -> Path:
    """The file that a row names; raises BrokenExample where there is none."""
    if not isinstance(name, str) or not name:
        raise BrokenExample("no file_name")
    file = table.parent / name
    with suppress(OSError):  # such as a name that is too long
        if file.is_file():
            return file
        if (table.parent.parent / name).is_file() or (table.parent / Path(name).name).is_file():
            raise BrokenExample("a path that is not relative to its table")
    raise BrokenExample("no such file")


def _beside(root: Path) -> Iterator[tuple[Path, str, Row] | BrokenExample]:
    """The pictures with the captions in files beside them; all of them without captions where none has one."""
    files = _pictures_in(root)
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    beside: dict[Path, dict[str, Path]] = {}  # a picture's path without its suffix → suffix → file, such as .TXT
    for path in root.rglob("*"):
        if path.suffix.lower() in BESIDE and path.is_file():
            beside.setdefault(path.with_suffix(""), {})[path.suffix.lower()] = path
    captioned = [file for file in pictures if file.with_suffix("") in beside]
    if pictures and not captioned:
        console.say_once(
            f"{root} has no captions: its {len(pictures)} pictures are used without (unconditional).{_misnamed(root)}"
        )
    for file in files:
        try:
            check_name(file.name)
            if file.suffix.lower() not in SUFFIXES:
                raise BrokenExample(NOT_DECODED)
            texts = beside.get(file.with_suffix(""), {})
            parts = {suffix: read_part(path) for suffix, path in texts.items()}
            yield (file, *(caption_beside(parts) if captioned else ("", {})))
        except BrokenExample as error:
            yield BrokenExample(error.reason, file.relative_to(root).as_posix())


def _pictures_in(root: Path) -> list[Path]:
    """The files of a folder and its subfolders that are called like pictures, hidden ones among them."""
    suffixes = {*SUFFIXES, *OTHER_SUFFIXES}
    return sorted(
        file for file in root.rglob("*") if file.suffix.lower() in suffixes and file.is_file() and _is_data(file, root)
    )


def _is_name(split: str) -> bool:
    """Whether a split is the name of a folder, not a path such as `..` or none."""
    return split not in ("", "..") and Path(split).name == split


def _is_data(file: Path, root: Path) -> bool:
    """Whether a file lies in no folder of a system's or an editor's own."""
    return not any(part.startswith(".") or part in NOT_DATA for part in file.relative_to(root).parts[:-1])
