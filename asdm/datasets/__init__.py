"""Data sets: captioned pictures to train, judge and calibrate on. One file each.

A file defines `open_data(split, size) -> Sequence[Example]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Example(NamedTuple):
    """A picture (3, h, w) in [-1, 1], and what it shows."""

    image: torch.Tensor
    caption: str
