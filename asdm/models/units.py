"""A library of replaced units on disk, which students are put together from (`asdm distill-units`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from asdm.models.checkpoints import check_finite, read_tensors
from asdm.models.loading import weights_sha256
from asdm.plan.edits import ReplaceUnit
from asdm.records.units import UnitRecord, Units
from asdm.unet.surgery import replacement_for
from asdm.utils.io import whole_file
from asdm.utils.record import sha256_of_file

INDEX = "units.json"
AGAIN = "the same asdm distill-units makes it again"


class UnitLibrary:
    """`library(unet, edit)` is the replacement of a unit with its weights of the library, where it has some.

    Raises ValueError for a folder that is not a library, and for one of another teacher.
    """

    def __init__(self, folder: Path | str, teacher: nn.Module) -> None:
        self.folder = Path(folder)
        self.record = Units.load(self.folder / INDEX)
        if self.record.teacher_sha256 != (sha256 := weights_sha256(teacher)):
            raise ValueError(
                f"{folder} has units of another teacher ({self.record.family}, {self.record.teacher_sha256[:12]}) than "
                f"this one ({sha256[:12]}); make a library of this one."
            )
        self._units = {edit_key(unit.edit): unit for unit in self.record.units}

    def unit(self, edit: ReplaceUnit) -> UnitRecord | None:
        return self._units.get(edit_key(edit))

    def __call__(self, unet: nn.Module, edit: ReplaceUnit) -> nn.Module:
        module = replacement_for(unet, edit)
        if (record := self.unit(edit)) is not None:
            load_into(module, self.folder, record)
        return module


def edit_key(edit: ReplaceUnit) -> str:
    """What a unit is filed under in a library: its edit, options and all."""
    return edit.model_dump_json(by_alias=True)


def unit_file(folder: Path, sha256: str) -> Path:
    """The file of a unit in its library."""
    return folder / f"{sha256}.safetensors"


def save_unit(module: nn.Module, unit: nn.Module, path: Path) -> str:
    """Write the tensors of a replaced unit that are not the unit's own, whole or not at all; the file's hash."""
    own = unit.state_dict()
    changed = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in module.state_dict().items()
        if name not in own or own[name].shape != tensor.shape or not torch.equal(own[name], tensor)
    }
    with whole_file(path, force=True) as temporary:
        save_file(changed, temporary)
        return sha256_of_file(temporary)


def why_unusable(folder: Path, record: UnitRecord) -> str | None:
    """What is wrong with a unit's file, if anything; files of earlier versions have no hash in their library."""
    path = unit_file(folder, record.sha256)
    if not path.is_file():
        return f"{path} is missing from its library"
    if record.file_sha256 not in (None, sha256_of_file(path)):
        return f"{path} is damaged: its bytes are not those that were written"
    try:
        read_tensors(path, lambda _: False)
    except ValueError as error:
        return str(error).rstrip(".")
    return None


def load_into(module: nn.Module, folder: Path, record: UnitRecord) -> None:
    """Put the tensors of a unit's file in a replaced unit's places.

    Raises ValueError for a file that is missing or damaged, of another structure, or with numbers that are none.
    """
    path = unit_file(folder, record.sha256)
    if problem := why_unusable(folder, record):
        raise ValueError(f"{problem}; {AGAIN}.")
    tensors, own = read_tensors(path), module.state_dict()
    check_finite(tensors, str(path), f"; delete it, and {AGAIN}")
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(
                f"unexpected tensor {name} {tuple(tensor.shape)} in {path}: it does not fit this replacement."
            )
        parent, _, leaf = name.rpartition(".")
        owner: Any = module.get_submodule(parent)
        like = getattr(owner, leaf)
        setattr(owner, leaf, nn.Parameter(tensor.to(like.device, like.dtype), like.requires_grad))
