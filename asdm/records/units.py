"""A library of replaced units: which edits it has weights for, how they were made, and how near they are."""

from __future__ import annotations

from pydantic import Field

from asdm.plan.edits import ReplaceUnit
from asdm.records.measurement import Amount, Count
from asdm.utils.record import Frozen, Record, later


class UnitRecord(Frozen):
    """One replaced unit; errors are mean squares relative to the variance of what the unit gives, on data not fitted.

    A step that does not lower the error is undone, so each is at most the one before it.
    """

    edit: ReplaceUnit
    # Of the unit's own weights, the edit and how it was made: the name of its file.
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    from_weights: Amount  # as the replacement makes it of the weights alone
    fitted: Amount  # with what is kept chosen, and what stays refit, on calibration data
    trained: Amount | None = None  # after block-local distillation
    file_sha256: str | None = later(None)  # of its file's bytes


class Units(Record, schema="asdm.units/1"):
    """`asdm.units/1`: the index of a library of units of one teacher."""

    created_utc: str
    command: str
    family: str
    teacher_sha256: str
    data: str
    data_fingerprint: str | None = later(None)  # what the data are known by (asdm/data/identity.py)
    data_sample: str | None = later(None)
    split: str
    calibration: Count  # noised latents that were fitted on
    steps: int  # of block-local distillation; 0: none
    batch: int
    learning_rate: float
    seed: int
    vae: str | None = later(None)  # in the place of the checkpoint's own, as the next four
    clip_skip: int | None = later(None)
    textual_inversion: tuple[str, ...] | None = later(None)
    prediction_type: str | None = later(None)
    units: tuple[UnitRecord, ...] = ()
    seconds: float = 0.0
    environment: dict[str, str]
