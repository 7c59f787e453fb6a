"""A folder of pictures with captions: `metadata.jsonl` as Hugging Face's ImageFolder has it, or a .txt beside each.

photos/metadata.jsonl   {"file_name": "cat.jpg", "text": "a cat on a mat"}
photos/cat.jpg          or, without metadata.jsonl, photos/cat.txt with the caption
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from asdm.data.datasets import BrokenExample, Example
from asdm.data.datasets._pictures import SUFFIXES, opened
from asdm.utils.io import sha256_of

CAPTION_KEYS = ("text", "caption", "prompt")


class Folder(Sequence[Example]):
    """Pictures of a folder and those below it, cut to a square of `size` pixels when they are asked for."""

    def __init__(self, files: Sequence[Path], captions: Sequence[str], size: int) -> None:
        self.files, self.captions, self.size = tuple(files), tuple(captions), size

    @property
    def fingerprint(self) -> str:
        """Changes with any caption, file name or file size."""
        told = [(file.name, file.stat().st_size if file.exists() else 0) for file in self.files]
        return sha256_of([self.size, told, self.captions])[:16]

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file = self.files[index]
        try:
            return Example(opened(file.read_bytes(), self.size), self.captions[index])
        except (OSError, ValueError) as error:
            raise BrokenExample(f"{file}: {error}") from None


def open_data(split: str = "train", size: int = 512, source: str | None = None) -> Folder:
    """The pictures of the folder `source` (of its subfolder `split`, where it has one).

    Raises ValueError for no folder, a line of metadata.jsonl that says too little, or no picture with a caption.
    """
    if not source:
        raise ValueError("the data set folder needs to know which: folder:DIR.")
    root = Path(source)
    if not root.is_dir():
        raise ValueError(f"{source} is no folder.")
    root = root / split if (root / split).is_dir() else root
    listed = root / "metadata.jsonl"
    pairs = _listed(listed) if listed.exists() else _beside(root)
    if not pairs:
        raise ValueError(f"{root} holds no picture with a caption: add metadata.jsonl, or a .txt beside each picture.")
    return Folder([file for file, _ in pairs], [caption for _, caption in pairs], size)


def _listed(path: Path) -> list[tuple[Path, str]]:
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            caption = next(row[key] for key in CAPTION_KEYS if key in row)
            pairs.append((path.parent / row["file_name"], str(caption)))
        except (ValueError, KeyError, TypeError, StopIteration):
            raise ValueError(f"{path}, line {number}: needs file_name and one of {', '.join(CAPTION_KEYS)}.") from None
    return pairs


def _beside(root: Path) -> list[tuple[Path, str]]:
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
    return [
        (file, file.with_suffix(".txt").read_text(encoding="utf-8").strip())
        for file in files
        if file.with_suffix(".txt").exists()
    ]
