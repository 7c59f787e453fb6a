"""Prompts alone, a line each in a text file: the teacher draws their pictures (asdm/data/drawn.py), which are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from asdm.data.datasets import Example, Indexed


def read_prompts(source: str | None) -> list[str]:
    """The lines of a text file that are not empty; raises ValueError where there are none."""
    if not source:
        raise ValueError("the data set prompts needs a text file with a prompt a line: prompts:FILE.")
    path, takes = Path(source), "prompts:FILE takes a text file with a prompt a line"
    if not path.exists():
        raise ValueError(f"{source} does not exist; {takes}.")
    if not path.is_file():  # such as a FIFO, which could be read only once
        raise ValueError(f"{source} is not a file; {takes}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # U+2028 and others may stand in a prompt
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not text in UTF-8; {takes}.") from None
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {(error.strerror or str(error)).lower()}; {takes}.") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{source} has no prompt in it.")
    return prompts


class Prompts(Indexed[Example]):
    """Prompts whose pictures nobody has drawn, for what takes captions alone."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = tuple(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def example(self, index: int) -> Example:
        return Example(torch.empty(3, 0, 0), self.captions[index])


def open_data(split: str = "train", size: int = 512, source: str | None = None) -> Indexed[Example]:
    """Raises ValueError: only a command that has a teacher can have it draw."""
    raise ValueError(f"the {len(read_prompts(source))} prompts of {source} need a teacher that draws their pictures.")
