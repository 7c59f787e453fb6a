"""What legality needs to know of a UNet: its units, their channels, and the samplers' places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from asdm.utils.record import Frozen


class UnitShape(Frozen):
    """One unit of a UNet: `fqn` is diffusers' own path; channels are those of the feature map."""

    fqn: str
    label: str
    kind: Literal["resnet", "transformer"]
    block: str
    layer: int
    channels_in: int
    channels_out: int


class Topology(Frozen):
    """The block → layer → unit hierarchy of one UNet (§2.1) in data-flow order."""

    channels_stem: int
    blocks: tuple[str, ...]
    samplers: dict[str, str]  # block → fqn of its down- or upsampler
    units: tuple[UnitShape, ...]

    @property
    def down_blocks(self) -> tuple[str, ...]:
        return tuple(block for block in self.blocks if block.startswith("down_blocks."))

    @property
    def up_blocks(self) -> tuple[str, ...]:
        return tuple(block for block in self.blocks if block.startswith("up_blocks."))

    def unit(self, fqn: str) -> UnitShape:
        for unit in self.units:
            if unit.fqn == fqn:
                return unit
        raise ValueError(f"unknown unit {fqn!r}; {format_choices([u.fqn for u in self.units], fqn)}")

    def layers(self, block: str) -> list[int]:
        return sorted({unit.layer for unit in self.units if unit.block == block})

    def layer_units(self, block: str, layer: int) -> list[UnitShape]:
        return [unit for unit in self.units if unit.block == block and unit.layer == layer]

    def mirror(self, block: str) -> str:
        """The up block that consumes a down block's skips, and back."""
        down, up = self.down_blocks, self.up_blocks
        here, there = (down, up) if block in down else (up, down)
        return there[len(here) - 1 - here.index(block)]


def format_choices(choices: Sequence[str], wanted: str = "") -> str:
    """The choices as the end of an error, those nearest to `wanted` if it names a block that exists."""
    prefix = wanted.rpartition(".")[0].rpartition(".")[0]
    near = [choice for choice in choices if prefix and choice.startswith(prefix)] or list(choices)
    shown = ", ".join(near[:8]) + (f", … ({len(near)} in all)" if len(near) > 8 else "")
    return f"choose from {shown}."
