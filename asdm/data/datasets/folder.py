"""A folder of captioned pictures: `metadata.jsonl` as in Hugging Face's ImageFolder, or a .txt beside each picture.

photos/metadata.jsonl   {"file_name": "cat.jpg", "text": "a cat on a mat"}
photos/cat.jpg          or, without metadata.jsonl, photos/cat.txt with the caption
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asdm.data.datasets import BrokenExample, Example, Indexed
from asdm.data.datasets._pictures import SUFFIXES, decode_picture
from asdm.utils.io import sha256_of

CAPTION_KEYS = ("text", "caption", "prompt")


class Folder(Indexed[Example]):
    """Pictures of a folder and its subfolders, cropped to a square of `size` pixels on access."""

    def __init__(self, files: Sequence[Path], captions: Sequence[str], size: int) -> None:
        self.files, self.captions, self.size = tuple(files), tuple(captions), size

    @property
    def fingerprint(self) -> str:
        """Hash of all captions, file names and file sizes."""
        files = [(file.name, file.stat().st_size if file.exists() else 0) for file in self.files]
        return sha256_of([self.size, files, self.captions])[:16]

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int) -> Example:
        file = self.files[index]
        try:
            return Example(decode_picture(file.read_bytes(), self.size), self.captions[index])
        except (OSError, ValueError) as error:
            raise BrokenExample(f"{file}: {error}") from None


def open_data(split: str = "train", size: int = 512, source: str | None = None) -> Folder:
    """The pictures of the folder `source`, or of its subfolder `split` if there is one.

    Raises ValueError if it is not a folder, for an incomplete line of metadata.jsonl, or without captioned pictures.
    """
    if not source:
        raise ValueError("the data set folder needs a folder: folder:DIR.")
    root = Path(source)
    if not root.is_dir():
        raise ValueError(f"{source} is not a folder.")
    root = root / split if (root / split).is_dir() else root
    listed = root / "metadata.jsonl"
    pairs = _listed(listed) if listed.exists() else _beside(root)
    if not pairs:
        raise ValueError(f"{root} has no picture with a caption; add metadata.jsonl, or a .txt beside each picture.")
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
    captions = [(file, file.with_suffix(".txt")) for file in files]
    return [(file, caption.read_text(encoding="utf-8").strip()) for file, caption in captions if caption.exists()]
