"""The settings of `asdm cache`, and the options of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.models.settings import DTYPES, PictureSetup, SquareSize
from asdm.utils.settings import Option

Split = Annotated[str, Option("Split of the data set, if it has several: train, held_out or others.")]

Workers = Annotated[
    int | None, Option("Threads that read and decode pictures; default: one a core, from 2 to 8.", at_least=1)
]


@dataclass(frozen=True)
class CacheSettings(PictureSetup):
    """How `asdm cache` encodes a data set; `batch` and `threads` are not used."""

    split: Split = "train"
    size: SquareSize = None
    dtype: Annotated[str, Option("What is stored: fp16, bf16 or fp32.", choices=DTYPES)] = "fp16"
    workers: Workers = None
    per_shard: Annotated[int, Option("Examples per shard.", at_least=1)] = 512
