"""The settings of a sensitivity measurement."""

from __future__ import annotations

from dataclasses import dataclass

from asdm.models.settings import Setup


@dataclass(frozen=True)
class SensitivitySettings(Setup):
    """What is measured on; `size`, `dtype`, … are the teacher's, and `batch` is not used."""

    data: str = "emoji"
    split: str = "train"
    prompts: int = 64
    timesteps: int = 8
    reuse: bool = True  # False: the plain loop over edits, to compare with
