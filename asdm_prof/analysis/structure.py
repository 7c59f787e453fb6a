"""What the structure of one UNet says of another's: where two models of the same topology spend their time.

A small model stands for a large one only in what they share. Block by block and unit by unit, the parts of time, MACs
and parameters stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from asdm.measure.statistics import spearman
from asdm.records.measurement import Estimate
from asdm_prof.analysis.tree import shallow_blocks, time_share
from asdm_prof.records import Profile


@dataclass(frozen=True)
class Shares:
    """Parts of the whole UNet, 0 to 1."""

    time: Estimate
    macs: float
    params: float


@dataclass(frozen=True)
class Row:
    """The units of one block, or of both shallow ones, in this model and in the other."""

    name: str
    ours: Shares
    theirs: Shares


def rows(ours: Profile, theirs: Profile) -> list[Row]:
    """Block by block, then the two shallow blocks (the paper's dn-block0 and up-block3) together.

    Raises ValueError where the blocks of the two are not the same.
    """
    if ours.topology.blocks != theirs.topology.blocks:
        raise ValueError(
            f"{theirs.family} has the blocks {', '.join(theirs.topology.blocks)} and {ours.family} "
            f"{', '.join(ours.topology.blocks)}; only models with the same blocks can be compared."
        )
    groups: dict[str, tuple[str, ...]] = {block: (block,) for block in ours.topology.blocks}
    groups[" and ".join(shallow_blocks(ours))] = shallow_blocks(ours)
    return [Row(name, _shares(ours, blocks), _shares(theirs, blocks)) for name, blocks in groups.items()]


def rank_agreement(ours: Profile, theirs: Profile) -> tuple[float, int]:
    """Spearman's rank correlation of the units' parts of time, and over how many units of the same name."""
    other = {unit.fqn: unit.share.median for unit in theirs.units}
    common = [(unit.share.median, other[unit.fqn]) for unit in ours.units if unit.fqn in other]
    return spearman([a for a, _ in common], [b for _, b in common]), len(common)


def _shares(profile: Profile, blocks: tuple[str, ...]) -> Shares:
    inside = [part for part in profile.parts if part.block in blocks]
    return Shares(
        time=time_share(profile, blocks),
        macs=sum(part.macs for part in inside) / profile.whole.macs,
        params=sum(part.params for part in inside) / profile.whole.params,
    )
